"""What looking at each image found, kept beside the cache, so that an image is read once and decoded once.

An image is taken unread for the one that was looked at before where its file's size and times are the same. Any other
is read and hashed, and what is known by its hash is not decoded again.
"""

from __future__ import annotations

import hashlib
import os
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from ..support.errors import UserError
from .images import UnusableImage, decode
from .pairs import ImageBytes, Mark, PairImage, ProblemKind
from .records import DIGEST_BYTES, PLACE_BYTES, UNSETTLED, Record, RecordFiles

# A file that was written in the last seconds may be written once more at what its system calls the same time (FAT
# counts by 2 s).
SETTLED_NS = 3_000_000_000
# What a kill can cost at most.
SAVED_IMAGES, SAVED_SECONDS = 100_000, 60.0


RECORDS = "images"


class Usable(NamedTuple):
    """Sizes in pixels, and whether the levels were brought to 8 bits by their range."""

    width: int
    height: int
    by_range: bool


class Unusable(NamedTuple):
    """Why the image is none that can be trained on."""

    kind: ProblemKind
    reason: str


class Verdicts:
    """The verdicts of a cache. ``looked_at`` counts the images, ``trusted`` those that were not read again, and
    ``replaced`` names those that were replaced by others of the same size and time of modification. ``failed`` says
    whether one could not be read, which another time it may.

    Args:
        folder: the cache.
        checksum: read and hash every image all the same.
    """

    def __init__(self, folder: Path, checksum: bool = False):
        self._files = RecordFiles(folder / RECORDS)
        self._checksum, self._here = checksum, os.getcwd()
        self._lock = threading.Lock()
        self._new: list[Record] = []
        # Of the new ones, which the files have not yet.
        self._by_digest: dict[bytes, Usable | Unusable] = {}
        self._saved_at = time.monotonic()
        self.looked_at = self.trusted = 0
        self.replaced: list[str] = []
        self.failed = False

    def look_at(self, images: Sequence[ImageBytes]) -> list[PairImage | Unusable]:
        """The images with their hashes and sizes, or why they are none; for several threads at once."""
        marks = [image.mark() for image in images]
        known = self._files.at([b"" if mark is None else self._key(mark.place) for mark in marks])
        found: list[PairImage | Unusable] = []
        trusted = 0
        for image, mark, before in zip(images, marks, known, strict=True):
            if mark and before and not self._checksum and before.mark == (mark.size, mark.modified_ns, mark.changed_ns):
                trusted += 1
                found.append(_found(image, before.sha256, _verdict_of(before)))
            else:
                found.append(self._read(image, mark, before))
        with self._lock:
            self.looked_at += len(images)
            self.trusted += trusted
        return found

    def save(self) -> None:
        """Writes what is new.

        Raises:
            UserError: when the disk is full or the folder cannot be written to.
        """
        with self._lock:
            self._save()
            self._files.merge()

    def _key(self, place: str) -> bytes:
        absolute = place if place.startswith(os.sep) else os.path.join(self._here, place)
        return hashlib.blake2b(absolute.encode("utf-8", "surrogatepass"), digest_size=PLACE_BYTES).digest()

    def _read(self, image: ImageBytes, mark: Mark | None, before: Record | None) -> PairImage | Unusable:
        now = time.time_ns()
        try:
            encoded = image.read()
        except OSError as error:
            self.failed = True
            where = f": {error.filename}" if error.filename else ""
            return Unusable("broken image", f"{error.strerror or error}{where}")
        digest = hashlib.sha256(encoded).digest()
        verdict = self._known(digest) or _verdict(encoded)
        # One that has no mark is kept by its hash alone.
        key, times = digest[:PLACE_BYTES], (UNSETTLED,) * 3
        if mark is not None:
            key = self._key(mark.place)
            times = mark.size, mark.modified_ns, mark.changed_ns
            if before and before.sha256 != digest and before.mark[:2] == times[:2]:
                self.replaced.append(str(image))
            if not is_settled(mark, now):
                times = (UNSETTLED,) * 3
        self._keep(_record(key, digest, times, verdict), before, verdict)
        return _found(image, digest, verdict)

    def _known(self, digest: bytes) -> Usable | Unusable | None:
        if (verdict := self._by_digest.get(digest)) is not None:
            return verdict
        record = self._files.of_digest(digest)
        return None if record is None else _verdict_of(record)

    def _keep(self, record: Record, before: Record | None, verdict: Usable | Unusable) -> None:
        if record == before:
            return
        with self._lock:
            self._new.append(record)
            self._by_digest[record.sha256] = verdict
            if len(self._new) >= SAVED_IMAGES or time.monotonic() - self._saved_at > SAVED_SECONDS:
                self._save()

    def _save(self) -> None:
        try:
            self._files.add(self._new)
        except OSError as error:
            raise UserError(
                f"{self._files.folder} cannot be written to ({error}); make room, or set `cache_dir` to another disk"
            ) from error
        self._new, self._by_digest, self._saved_at = [], {}, time.monotonic()


def is_settled(mark: Mark, now_ns: int) -> bool:
    """Whether a file's times tell what is written into it from now on."""
    return now_ns - max(mark.modified_ns, mark.changed_ns) >= SETTLED_NS


def _verdict(encoded: bytes) -> Usable | Unusable:
    try:
        image, by_range = decode(encoded)
    except UnusableImage as error:
        return Unusable(error.kind, str(error))
    return Usable(*image.size, by_range)


def _verdict_of(record: Record) -> Usable | Unusable:
    if record.refusal is not None:
        return Unusable(*record.refusal)
    return Usable(record.width, record.height, record.by_range)


def _record(key: bytes, digest: bytes, times: tuple[int, int, int], verdict: Usable | Unusable) -> Record:
    assert len(digest) == DIGEST_BYTES
    if isinstance(verdict, Unusable):
        return Record(key, digest, times, 0, 0, False, (verdict.kind, verdict.reason))
    return Record(key, digest, times, *verdict, None)


def _found(image: ImageBytes, digest: bytes, verdict: Usable | Unusable) -> PairImage | Unusable:
    return verdict if isinstance(verdict, Unusable) else PairImage(image, digest.hex(), *verdict)
