"""What decoding each image found, kept by the hash of its bytes, so that it is decoded only once."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import NamedTuple

from chats.files import write_text

from .images import UnusableImage, decode
from .pairs import ImageBytes, PairImage, ProblemKind

VERDICTS_FILE = "images.json"
# Raise it when images are decoded or refused otherwise than before. Files of version 0.1.0 state none.
VERDICTS_VERSION = 2


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
    """The verdicts of a cache.

    Args:
        folder: the cache.
    """

    def __init__(self, folder: Path):
        self._path = folder / VERDICTS_FILE
        self._found = _load(self._path)
        self._stored = len(self._found)

    def look_at(self, source: ImageBytes) -> PairImage | Unusable:
        """The image with its hash and size, or why it is none; its bytes are read and hashed each time."""
        try:
            encoded = source.read()
        except OSError as error:
            where = f": {error.filename}" if error.filename else ""
            return Unusable("broken image", f"{error.strerror or error}{where}")
        digest = hashlib.sha256(encoded).hexdigest()
        if digest not in self._found:
            self._found[digest] = _verdict(encoded)
        verdict = self._found[digest]
        return verdict if isinstance(verdict, Unusable) else PairImage(source, digest, *verdict)

    def save(self) -> None:
        """Writes them, where there are new ones."""
        if len(self._found) > self._stored:
            write_text(self._path, json.dumps({"version": VERDICTS_VERSION, "images": self._found}))
            self._stored = len(self._found)


def _verdict(encoded: bytes) -> Usable | Unusable:
    try:
        image, by_range = decode(encoded)
    except UnusableImage as error:
        return Unusable(error.kind, str(error))
    return Usable(*image.size, by_range)


def _load(path: Path) -> dict[str, Usable | Unusable]:
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
        if stored["version"] != VERDICTS_VERSION:
            return {}
        return {
            digest: Unusable(*found) if len(found) == len(Unusable._fields) else Usable(*found)
            for digest, found in stored["images"].items()
        }
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return {}  # The first time, of another version, or damaged: the images are decoded anew.
