"""What one rater still has to be asked of a data set, and what is being asked right now in other windows."""

from __future__ import annotations

import random
import time
from collections.abc import Collection
from dataclasses import dataclass

from .pairing import REPEATS, Block, block_for, choose, repeat_for
from .pictures import Pictures
from .records import Pair, pair_of
from .tally import Rater

# How long a pair that one window was given is kept from the others.
HELD_SECONDS = 180.0


@dataclass(frozen=True)
class Shown:
    """A pair as it is shown; ``repeat`` says that the rater has answered it before."""

    left: str
    right: str
    prompt: str
    repeat: bool = False

    @property
    def pair(self) -> Pair:
        return pair_of(self.left, self.right)


class Plan:
    """One rater's blocks by prompt, kept until something in them changes."""

    def __init__(self) -> None:
        self._blocks: dict[str, list[Block]] = {}
        self._stale: set[str] = set()
        self._held: dict[Pair, tuple[str, float]] = {}

    def forget(self, prompt: str, pair: Pair | None = None) -> None:
        """Says that a prompt's pictures are others now or, with a pair, that this pair's answer is another."""
        self._stale.add(prompt)
        if pair is not None:
            self._blocks[prompt] = [
                block for block in self._blocks.get(prompt, []) if not set(pair).intersection(block.pictures)
            ]

    def refresh(self, pictures: Pictures, rater: Rater) -> None:
        """Makes the blocks anew that changed."""
        fresh = pictures.prompts.keys() - self._blocks.keys() if len(self._blocks) < len(pictures.prompts) else set()
        for prompt in self._stale | fresh:
            kept = {block.pictures[0]: block for block in self._blocks.pop(prompt, [])}
            if prompt in pictures.prompts:
                self._blocks[prompt] = [
                    before if (before := kept.get(found[0])) and before.pictures == found else block_for(found, rater)
                    for found in pictures.blocks(prompt)
                ]
        self._stale.clear()

    def waiting(self) -> int:
        return sum(block.waiting for blocks in self._blocks.values() for block in blocks)

    def next(
        self, pictures: Pictures, rater: Rater, tab: str, avoid: Collection[Pair], rng: random.Random
    ) -> Shown | None:
        """The pair to show in a window next; None where nothing is left.

        Args:
            pictures: the candidates.
            rater: the answers so far.
            tab: the window. Pairs that another one was given come only where nothing else is left.
            avoid: pairs that the window has already.
            rng: the coin that decides between equals, on the sides and on repeats.
        """
        now = time.monotonic()
        self._held = {pair: held for pair, held in self._held.items() if now - held[1] < HELD_SECONDS}
        elsewhere = {pair for pair, (holder, _) in self._held.items() if holder != tab}
        fresh = self._fresh(rater, {*avoid, *elsewhere}, rng) or self._fresh(rater, set(avoid), rng)
        if fresh is None:
            return None
        again = repeat_for(rater, {*avoid, *elsewhere}, pictures.there, rng) if rng.random() < REPEATS else None
        if again is not None:
            shown = Shown(again.right, again.left, pictures.known[again.left].prompt, repeat=True)
        else:
            left, right = fresh if rng.random() < 0.5 else fresh[::-1]
            shown = Shown(left, right, pictures.known[left].prompt)
        self._held[shown.pair] = (tab, now)
        return shown

    def _fresh(self, rater: Rater, taken: set[Pair], rng: random.Random) -> Pair | None:
        """A pair of the blocks that were compared least; of others where all pairs of those are taken."""
        blocks = [block for found in self._blocks.values() for block in found if block.waiting]
        least = min((block.least for block in blocks), default=0)
        first = [block for block in blocks if block.least == least]
        if first and (pair := choose(rng.choice(first).pictures, rater, taken, rng)):
            return pair
        rng.shuffle(blocks)
        for block in sorted(blocks, key=lambda block: block.least):
            if pair := choose(block.pictures, rater, taken, rng):
                return pair
        return None
