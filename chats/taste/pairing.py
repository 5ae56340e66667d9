"""Which pairs of pictures are worth asking a person for, and which of them next."""

from __future__ import annotations

import itertools
import math
import random
from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from functools import cache

from . import bradley_terry
from .records import Pair, Vote, pair_of
from .tally import Rater

# From so many pictures of a prompt on, what the comparisons tell of the order decides what is asked next.
MANY = 6
# Below that, a picture is compared at most so often.
MOST_COMPARISONS = 3
# Pictures of one prompt are compared within blocks of so many, as they came. More are not put in one order.
BLOCK = 32
# Share of the pairs that a rater has answered before, the sides swapped; and how many answers lie between at least.
REPEATS = 0.05
BETWEEN = 10
# So many answers are drawn by lot until one may be asked for again: to look through all of them takes too long.
LOTS = 100


@dataclass
class Block:
    """Pictures of one prompt that are compared with each other, as one rater has left them.

    Attributes:
        pictures: their ids.
        waiting: how many pairs are to be asked still.
        least: how often the pictures of the least compared of these pairs were compared.
    """

    pictures: list[str]
    waiting: int
    least: float


def blocks_of(pictures: list[str]) -> Iterator[list[str]]:
    """Pictures of a prompt in blocks of BLOCK; fewer than MANY at the end stay with those before."""
    start = 0
    while len(pictures) - start >= BLOCK + MANY:
        yield pictures[start : start + BLOCK]
        start += BLOCK
    yield pictures[start:]


def budget(count: int) -> int:
    """How many comparisons many pictures are worth: ⌈log2 n⌉ a picture, in the order of what sorting takes."""
    return count * math.ceil(math.log2(count)) // 2


@cache
def pairs_of_untouched(count: int) -> int:
    return _waiting([str(at) for at in range(count)], Rater())


def block_for(pictures: list[str], rater: Rater) -> Block:
    """How a block stands for a rater."""
    if not any(rater.counts[picture] for picture in pictures):
        waiting = pairs_of_untouched(len(pictures))
        return Block(pictures, waiting, 0 if waiting else math.inf)
    waiting = _waiting(pictures, rater)
    pairs = _open_pairs(pictures, rater, rater.counts) if waiting else []
    return Block(pictures, waiting, min((_compared(pair, rater.counts) for pair in pairs), default=math.inf))


def choose(pictures: list[str], rater: Rater, taken: Collection[Pair], rng: random.Random) -> Pair | None:
    """The pair of a block to ask for next; None where there is none.

    Of few pictures the least compared pair, of MANY the one whose order is known least; a coin decides between equals.

    Args:
        pictures: the block.
        rater: who is asked.
        taken: pairs that are being asked for already; they count as compared.
        rng: the coin.
    """
    within = set(pictures)
    asked = [pair for pair in taken if within.issuperset(pair) and pair not in rater.first]
    counts = Counter({picture: rater.counts[picture] for picture in pictures})
    counts.update(itertools.chain.from_iterable(asked))
    pairs = [pair for pair in _open_pairs(pictures, rater, counts) if pair not in asked]
    if len(pictures) < MANY:
        ranks = {pair: (0.0, _compared(pair, counts)) for pair in pairs}
    elif len(_answered(pictures, rater)) + len(asked) < budget(len(pictures)):
        number = {picture: at for at, picture in enumerate(pictures)}
        known = bradley_terry.fit(len(pictures), _wins(number, rater))
        ranks = {
            # Rounded, so that pairs that are known as little are told by how often they were compared.
            pair: (-round(bradley_terry.doubt(*known, *(number[picture] for picture in pair)), 6), counted)
            for pair in pairs
            for counted in [_compared(pair, counts)]
        }
    else:
        return None
    least = min(ranks.values(), default=None)
    return rng.choice([pair for pair in pairs if ranks[pair] == least]) if pairs else None


def repeat_for(rater: Rater, taken: Collection[Pair], there: Collection[str], rng: random.Random) -> Vote | None:
    """An earlier answer to ask for again; None where there is none, or LOTS find none.

    It is none of the last BETWEEN, no skip, and was not repeated yet; both of its pictures are ``there``.
    """
    recent = {vote.pair for vote in itertools.islice(reversed(rater.votes.values()), BETWEEN)}
    for pair in rng.choices(rater.order, k=LOTS) if rater.order else ():
        fit = pair not in recent and pair not in taken and pair not in rater.again
        if fit and rater.first[pair].choice != "skip" and all(picture in there for picture in pair):
            return rater.first[pair]
    return None


def _compared(pair: Pair, counts: Counter[str]) -> int:
    return counts[pair[0]] + counts[pair[1]]


def _all_pairs(pictures: list[str]) -> Iterator[Pair]:
    return (pair_of(*both) for both in itertools.combinations(pictures, 2))


def _answered(pictures: list[str], rater: Rater) -> list[Pair]:
    return [pair for pair in _all_pairs(pictures) if pair in rater.first]


def _open_pairs(pictures: list[str], rater: Rater, counts: Counter[str]) -> list[Pair]:
    """The pairs that may be asked: not answered yet, and of few pictures none that was compared often enough."""
    if len(pictures) < MANY:
        pictures = [picture for picture in pictures if counts[picture] < MOST_COMPARISONS]
    return [pair for pair in _all_pairs(pictures) if pair not in rater.first]


def _waiting(pictures: list[str], rater: Rater) -> int:
    """How many pairs will be asked still; of few pictures, as asking the least compared first ends."""
    pairs = _open_pairs(pictures, rater, rater.counts)
    if len(pictures) >= MANY:
        return max(0, min(len(pairs), budget(len(pictures)) - len(_answered(pictures, rater))))
    counts, waiting = Counter({picture: rater.counts[picture] for picture in pictures}), 0
    while pairs:
        pair = min(pairs, key=lambda pair: _compared(pair, counts))
        counts.update(pair)
        waiting += 1
        pairs = [
            other for other in pairs if other != pair and max(counts[picture] for picture in other) < MOST_COMPARISONS
        ]
    return waiting


def _wins(number: dict[str, int], rater: Rater) -> Iterator[tuple[int, int, float]]:
    """The rater's answers within a block, repeats too, as :func:`.bradley_terry.fit` takes them."""
    for pair in _answered(list(number), rater):
        for vote in filter(None, (rater.first[pair], rater.again.get(pair))):
            one, other = number[vote.left], number[vote.right]
            if vote.choice == "tie":
                yield one, other, 0.5
                yield other, one, 0.5
            elif vote.choice != "skip":
                yield (one, other, 1.0) if vote.choice == "left" else (other, one, 1.0)
