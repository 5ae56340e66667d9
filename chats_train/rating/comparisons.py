"""Which pictures a scorer compares, and what it says of two."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterator, Sequence

from chats.taste.records import Pair, pair_of

# Neighbours on either side, so that a picture is in at most eight comparisons; up to nine pictures that is all pairs.
NEIGHBOURS = 4


def comparisons(pictures: Sequence[str]) -> Iterator[Pair]:
    """The pairs of one prompt's pictures (ids) that a scorer is asked for: all of up to nine; of more, each with the
    four before and the four after it, in a circle whose order is random but always the same.

    Scores put all pictures of a prompt in one order, so more pairs of them would tell nothing new, while their number
    would grow with the square and outvote the prompts of few.
    """
    circle = sorted(pictures, key=lambda name: hashlib.sha256(name.encode()).digest())
    count = len(circle)
    seen = set()
    for at, step in itertools.product(range(count), range(1, NEIGHBOURS + 1)):
        other = (at + step) % count
        if other != at and (pair := pair_of(circle[at], circle[other])) not in seen:
            seen.add(pair)
            yield pair


def choice(left: float, right: float, margin: float) -> str:
    """What two scores say: `left`, `right`, or `tie` where they are equal or less than ``margin`` apart."""
    if left == right or abs(left - right) < margin:
        return "tie"
    return "left" if left > right else "right"
