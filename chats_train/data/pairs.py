"""A preference pair, before and after its images were looked at."""

from __future__ import annotations

import itertools
import os
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, NamedTuple, Protocol

from chats.buckets import Bucket
from chats.words import shown

ProblemKind = Literal[
    "broken image",
    "several pictures",
    "unknown range",
    "missing caption",
    "unreadable caption",
    "size mismatch",
    "no partner",
    "duplicate",
    "same image",
    "reversed pair",
]
# Characters of a problem's detail: it may hold a path.
LONGEST_DETAIL = 300


class Mark(NamedTuple):
    """By what an image is taken, unread, for the one that was looked at before: where it is (a file, or a file with a
    column and a row), and of the file its size in bytes, when it was modified and when its entry was changed."""

    place: str
    size: int
    modified_ns: int
    changed_ns: int


class ImageBytes(Protocol):
    """Where the bytes of one encoded image come from; ``str`` of it tells the user where that is."""

    @property
    def place(self) -> str:
        """What :attr:`PairSource.image` makes the same of again."""
        ...

    def mark(self) -> Mark | None:
        """None where nothing tells that the image is the same but its bytes."""
        ...

    def read(self) -> bytes:
        """The encoded image (PNG, JPEG, …), read anew at each call.

        Raises:
            OSError: when it cannot be read.
        """
        ...


@dataclass(frozen=True, slots=True)
class FileImage:
    """An image in a file of its own."""

    path: str | Path

    @property
    def place(self) -> str:
        return str(self.path)

    def mark(self) -> Mark | None:
        try:
            status = os.stat(self.path)
        except (OSError, ValueError):
            return None
        if not stat.S_ISREG(status.st_mode):
            return None
        return Mark(self.place, status.st_size, status.st_mtime_ns, status.st_ctime_ns)

    def is_there(self) -> bool:
        """Whether it is a file: a pipe would wait for ever, a device give more than memory holds."""
        return os.path.isfile(self.path)  # False too for a name that cannot be one

    def read(self) -> bytes:
        if not self.is_there():
            raise OSError(f"no file is there, looked for {Path(self.path).absolute()}")
        return Path(self.path).read_bytes()

    def __str__(self) -> str:
        return str(self.path)


@dataclass(frozen=True, slots=True)
class RawPair:
    """A pair as its source states it. ``name`` tells the user where it is: a file's name or a row.

    ``prompt`` is what stands in its place, whatever that is.
    """

    name: str
    prompt: object
    chosen: ImageBytes
    rejected: ImageBytes


@dataclass(frozen=True, slots=True)
class PairImage:
    """An image that was read and decoded once.

    ``sha256`` is of its encoded bytes, hexadecimal; sizes are in pixels, as displayed; ``by_range`` is that of
    ``images.Decoded``.
    """

    source: ImageBytes = field(repr=False)
    sha256: str
    width: int
    height: int
    by_range: bool = False

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
        return f"{shown(self.name)}: {self.kind} ({shown(self.detail, LONGEST_DETAIL)})"


class Pairs(Protocol):
    """The pairs of a source, as many as ``len`` says; a table's are made as they are asked for."""

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[RawPair]: ...


@dataclass(frozen=True)
class LazyPairs:
    """Pairs that ``make`` makes, ``count`` of them, at each pass over them."""

    count: int
    make: Callable[[], Iterator[RawPair]]

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[RawPair]:
        return itertools.islice(self.make(), self.count)


@dataclass(frozen=True)
class PairSource:
    """All pairs that a folder or table states, and the problems found without opening an image.

    ``ties`` were left out; ``remarks`` are lines on what else was, and on what was read. ``image`` makes an image of
    its ``place``. ``state`` is a digest of all that the pairs and what is said of them follow from, None where only
    reading them tells.
    """

    name: str
    pairs: Pairs
    problems: list[Problem] = field(default_factory=list)
    ties: int = 0
    remarks: list[str] = field(default_factory=list)
    image: Callable[[str], ImageBytes] = FileImage
    state: str | None = None


@dataclass(frozen=True)
class Opening:
    """A source that was found, before its pairs are stated, which ``read`` does; the rest is as in
    :class:`PairSource`, whose ``state`` is this one or, where what was read is not seen by it, None."""

    name: str
    state: str | None
    read: Callable[[], PairSource]
    image: Callable[[str], ImageBytes] = FileImage


def opening_of(source: PairSource) -> Opening:
    """Of a source whose pairs are stated already."""
    return Opening(source.name, source.state, lambda: source, source.image)
