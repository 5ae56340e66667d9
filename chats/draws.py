"""What is random in a step, each from a hash of (seed, epoch, pair): the same on any number of processes, and after any
resume."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

import torch
from torch import Tensor

# Draws of the measurements, which are the same each time.
VALIDATION_EPOCH = -1


class Identified(Protocol):
    """A pair of a data set; its ``id`` follows from its contents alone."""

    @property
    def id(self) -> str: ...


Pair = TypeVar("Pair", bound=Identified)


@dataclass(frozen=True)
class Draw:
    """The random numbers of one pair in one epoch, shared by its two images: noise [channels, height, width] and a
    uniform number for the timestep; and one for the coin that decides whether the dispreferred model sees the null
    prompt."""

    noise: Tensor
    timestep: float
    coin: float


def draw(seed: int, epoch: int, pair_id: str, shape: torch.Size) -> Draw:
    """The draw of one pair; ``shape`` is that of its latents. On the CPU, whose generator is the same on every
    machine."""
    generator = torch.Generator().manual_seed(_number(seed, epoch, pair_id))
    timestep, coin = torch.rand(2, generator=generator, dtype=torch.float64).tolist()
    return Draw(torch.randn(shape, generator=generator), timestep, coin)


def step_pairs(samples: Sequence[Pair], seed: int, step: int, size: int) -> list[tuple[int, Pair]]:
    """The pairs of one optimizer step (counted from 0) with their epochs, ``size`` of them.

    The epochs follow each other without a gap, each in an order of its own, so that a step's pairs follow from its
    number alone.
    """
    picked = []
    orders: dict[int, list[Pair]] = {}
    for position in range(step * size, (step + 1) * size):
        epoch, index = divmod(position, len(samples))
        if epoch not in orders:
            orders[epoch] = shuffled(samples, seed, epoch)
        picked.append((epoch, orders[epoch][index]))
    return picked


def shuffled(samples: Sequence[Pair], seed: int, epoch: int) -> list[Pair]:
    """The pairs in an order that depends on seed, epoch and the pairs alone, not on the order of their source."""
    return sorted(samples, key=lambda sample: (_number(seed, epoch, "order", sample.id), sample.id))


def held_out(samples: Sequence[Pair], seed: int, count: int) -> tuple[list[Pair], list[Pair]]:
    """The pairs to train on and those to measure on; at most half are held out."""
    order = shuffled(samples, seed, VALIDATION_EPOCH)
    count = min(count, len(order) // 2)
    return order[count:], order[:count]


def _number(*parts: object) -> int:
    """A whole number of 63 bits from the hash of the parts."""
    digest = hashlib.sha256("\0".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1
