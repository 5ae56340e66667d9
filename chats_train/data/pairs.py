"""A preference pair, before and after its images were looked at."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol

from chats.words import shown

from .buckets import Bucket

ProblemKind = Literal["broken image", "missing caption", "size mismatch", "no partner", "duplicate"]


class ImageBytes(Protocol):
    """Where the bytes of one encoded image come from; ``str`` of it tells the user where that is."""

    def read(self) -> bytes:
        """The encoded image (PNG, JPEG, …), read anew at each call.

        Raises:
            OSError: when it cannot be read.
        """
        ...


@dataclass(frozen=True, slots=True)
class FileImage:
    """An image in a file of its own."""

    path: Path

    def read(self) -> bytes:
        # A pipe would wait for ever, a device give more than memory holds. False too for a name that cannot be one.
        if not self.path.is_file():
            raise OSError("no file is there")
        return self.path.read_bytes()

    def __str__(self) -> str:
        return str(self.path)


@dataclass(frozen=True, slots=True)
class RawPair:
    """A pair as its source states it. ``name`` tells the user where it is: a file's name or a row."""

    name: str
    prompt: str | None
    chosen: ImageBytes
    rejected: ImageBytes


@dataclass(frozen=True, slots=True)
class PairImage:
    """An image that was read and decoded once. ``sha256`` is of its encoded bytes, hexadecimal; sizes are in pixels, as
    displayed."""

    source: ImageBytes = field(repr=False)
    sha256: str
    width: int
    height: int

    def read(self) -> bytes:
        """The encoded image."""
        return self.source.read()

    def __str__(self) -> str:
        return str(self.source)


@dataclass(frozen=True, slots=True)
class PairSample:
    """A usable pair. ``id`` is a hash of the prompt and of both images' bytes, the same wherever the files lie."""

    id: str
    name: str
    prompt: str
    chosen: PairImage
    rejected: PairImage
    bucket: Bucket


@dataclass(frozen=True, slots=True)
class Problem:
    """Something wrong with one pair: where it is, and what."""

    kind: ProblemKind
    name: str
    detail: str

    def __str__(self) -> str:
        return f"{shown(self.name)}: {self.kind} ({shown(self.detail)})"


@dataclass(frozen=True)
class PairSource:
    """All pairs that a folder or table states, the problems found without opening an image, and the ties left out."""

    name: str
    pairs: list[RawPair]
    problems: list[Problem] = field(default_factory=list)
    ties: int = 0


def pair_id(prompt: str, chosen_sha256: str, rejected_sha256: str) -> str:
    """The stable id of a pair, hexadecimal."""
    # The digests have a fixed length, so no other prompt can give the same bytes.
    return hashlib.sha256(f"{chosen_sha256}{rejected_sha256}{prompt}".encode()).hexdigest()
