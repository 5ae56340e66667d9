"""What is random in training, each from a hash of (seed, epoch, pair): the same on any number of processes, and after
any resume.

The hash is SHA-256, of the parts as text; it seeds torch's generator on the CPU, whose numbers are the same on every
machine. Nothing is drawn from a generator that lives on from step to step.
"""

from __future__ import annotations

import hashlib
import sys
from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

import torch
from torch import Tensor

# No epoch of training: the draws of the measurements, which are the same each time, and the choice of what is held out.
VALIDATION_EPOCH = -1


class Identified(Protocol):
    """A pair of a data set; its ``id`` follows from its contents alone."""

    @property
    def id(self) -> str: ...


Pair = TypeVar("Pair", bound=Identified)


def pair_id(prompt: str, chosen_sha256: str, rejected_sha256: str) -> str:
    """The stable id of a pair, hexadecimal."""
    # The digests have a fixed length, so no other prompt can give the same bytes.
    return hashlib.sha256(f"{chosen_sha256}{rejected_sha256}{prompt}".encode()).hexdigest()


def fingerprint(ids: Iterable[str]) -> str:
    """Digest of the pairs' contents, whatever their order: ``chats.dataset_fingerprint`` of a pair's metadata."""
    return hashlib.sha256("\n".join(sorted(ids)).encode()).hexdigest()


@dataclass(frozen=True)
class Draw:
    """The random numbers of one pair in one epoch; its two images share noise and timestep.

    ``noise`` is standard normal, fp32, [channels, height, width] as the latents. ``timestep`` is uniform from 0 to 1,
    which a family turns into a timestep of its own. ``coin`` is uniform from 0 to 1: where it falls below the run's
    ``null_prompt_prob``, the dispreferred model sees the null prompt.
    """

    noise: Tensor
    timestep: float
    coin: float


def draw(seed: int, epoch: int, pair_id: str, shape: torch.Size) -> Draw:
    """The draw of one pair.

    Args:
        seed: the run's.
        epoch: counted from 0, or ``VALIDATION_EPOCH``.
        pair_id: of the pair's contents.
        shape: of its latents, [channels, height, width].
    """
    generator = torch.Generator().manual_seed(_number(seed, epoch, pair_id))
    timestep, coin = torch.rand(2, generator=generator, dtype=torch.float64).tolist()
    return Draw(torch.randn(shape, generator=generator), timestep, coin)


class Order:
    """Which pairs a step has. The order of an epoch is made once, when a step first asks for it, and kept until a later
    one is asked for.

    Args:
        ids: of the pairs to train on, in any order.
        seed: the run's.
    """

    def __init__(self, ids: Sequence[str], seed: int):
        self._ids, self._seed = ids, seed
        self._epochs: dict[int, list[int]] = {}

    def step(self, step: int, size: int) -> list[tuple[int, int]]:
        """The pairs of one optimizer step with their epochs.

        The epochs follow each other without a gap, each in an order of its own, so that a step's pairs follow from its
        number alone.

        Args:
            step: counted from 0.
            size: pairs in a step, over all processes.

        Returns:
            ``size`` times an epoch, counted from 0, and a pair's place in ``ids``; a step may reach into the next
            epoch.
        """
        count = len(self._ids)
        first = step * size // count
        self._epochs = {epoch: rows for epoch, rows in self._epochs.items() if epoch >= first}
        positions = (divmod(position, count) for position in range(step * size, (step + 1) * size))
        return [(epoch, self._rows(epoch)[index]) for epoch, index in positions]

    def _rows(self, epoch: int) -> list[int]:
        if epoch not in self._epochs:
            self._epochs[epoch] = shuffled_rows(self._ids, self._seed, epoch)
        return self._epochs[epoch]


def step_pairs(samples: Sequence[Pair], seed: int, step: int, size: int) -> list[tuple[int, Pair]]:
    """The pairs of one optimizer step with their epochs, as :meth:`Order.step` has them; sorts them all."""
    picked = Order([sample.id for sample in samples], seed).step(step, size)
    return [(epoch, samples[row]) for epoch, row in picked]


def shuffled_rows(ids: Sequence[str], seed: int, epoch: int) -> list[int]:
    """The order of one epoch, as places in ``ids``. It follows from the seed, the epoch and the ids, not from the order
    in which they come: by the hash of (seed, epoch, id), and of two with one hash by the id."""
    # Of its parts, the hash's last alone differs from pair to pair.
    begun = hashlib.sha256(_text(seed, epoch, "order", ""))

    def digest(identity: str) -> bytes:
        each = begun.copy()
        each.update(identity.encode())
        return each.digest()

    numbers, rows = _all_leading(map(digest, ids)).sort(stable=True)
    order: list[int] = rows.tolist()
    if (numbers[1:] == numbers[:-1]).any():
        number_of = dict(zip(order, numbers.tolist(), strict=True))
        order.sort(key=lambda row: (number_of[row], ids[row]))
    return order


def shuffled(samples: Sequence[Pair], seed: int, epoch: int) -> list[Pair]:
    """The pairs in the order of one epoch (:func:`shuffled_rows`)."""
    return [samples[row] for row in shuffled_rows([sample.id for sample in samples], seed, epoch)]


def held_out_rows(ids: Sequence[str], seed: int, count: int) -> tuple[list[int], list[int]]:
    """The pairs to train on and those to measure on, as places in ``ids``: ``count`` of them, at most half of all."""
    order = shuffled_rows(ids, seed, VALIDATION_EPOCH)
    count = held_out_count(len(order), count)
    return order[count:], order[:count]


def held_out_count(pairs: int, count: int) -> int:
    """How many of so many pairs are measured on where ``count`` are asked for."""
    return min(count, pairs // 2)


def held_out(samples: Sequence[Pair], seed: int, count: int) -> tuple[list[Pair], list[Pair]]:
    """The pairs to train on and those to measure on (:func:`held_out_rows`)."""
    kept, held = held_out_rows([sample.id for sample in samples], seed, count)
    return [samples[row] for row in kept], [samples[row] for row in held]


def _number(*parts: object) -> int:
    """A whole number of 63 bits from the hash of the parts."""
    return _leading(hashlib.sha256(_text(*parts)).digest())


def _text(*parts: object) -> bytes:
    return "\0".join(map(str, parts)).encode()


def _leading(digest: bytes) -> int:
    return int.from_bytes(digest[:8], "big") >> 1


def _all_leading(digests: Iterable[bytes]) -> Tensor:
    """:func:`_leading` of each, int64 [digests]."""
    numbers = array("Q", b"".join(digest[:8] for digest in digests))
    if sys.byteorder == "little":
        numbers.byteswap()
    if not numbers:
        return torch.empty(0, dtype=torch.int64)
    # A shift keeps the sign, which the leading bit is.
    return torch.frombuffer(numbers, dtype=torch.int64).bitwise_right_shift(1).bitwise_and((1 << 63) - 1)
