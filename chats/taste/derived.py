"""metadata.jsonl: the pairs as the trainer reads them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path

from ..files import replacing
from .names import IMAGES, Conflict

PICTURE = re.compile(rf"{IMAGES}/[0-9a-f]{{16}}\.png")
KEYS = ("chosen_file_name", "rejected_file_name", "prompt")
# (id of the chosen picture, id of the rejected one, prompt).
Preference = tuple[str, str, str]
# Number, size and time of change of a file.
Stamp = tuple[int, int, int]


class Derived:
    """The file of one data set; lines that were written before are kept ready."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lines: dict[Preference, bytes] = {}
        # What the file held when this last looked, and how to see that it still does.
        self._seen: tuple[Stamp | None, bytes] = None, b""
        # How to see that it is what this wrote last.
        self._own: Stamp | None = None

    def differs(self, pairs: Iterable[Preference]) -> bool:
        """Whether the file says something else than the pairs; none at all is the same as no file."""
        return self._data(pairs) != self._before()

    def write(self, pairs: Iterable[Preference]) -> None:
        """Writes the pairs whole or not at all.

        Raises:
            Conflict: where the file holds what this did not write.
        """
        before = self._before()
        if self._seen[0] != self._own and not all(map(_is_derived, before.splitlines())):
            raise Conflict(
                "foreignMetadata",
                "{file} has lines that come from no rating, and is left as it is; move it elsewhere",
                file=str(self.path),
            )
        data = self._data(pairs)
        with replacing(self.path) as temporary:
            temporary.write_bytes(data)
        self._own = self._stamp()
        self._seen = self._own, data

    def _data(self, pairs: Iterable[Preference]) -> bytes:
        self._lines = {pair: self._lines.get(pair) or _line(pair) for pair in pairs}
        return b"".join(self._lines.values())

    def _before(self) -> bytes:
        """What the file holds; it is read where it changed."""
        stamp = self._stamp()
        if stamp != self._seen[0]:
            self._seen = stamp, self.path.read_bytes() if stamp else b""
        return self._seen[1]

    def _stamp(self) -> Stamp | None:
        if not self.path.exists():
            return None
        stat = self.path.stat()
        return stat.st_ino, stat.st_size, stat.st_mtime_ns


def _line(pair: Preference) -> bytes:
    chosen, rejected, prompt = pair
    names = (f"{IMAGES}/{chosen}.png", f"{IMAGES}/{rejected}.png", prompt)
    return json.dumps(dict(zip(KEYS, names, strict=True)), ensure_ascii=False).encode("utf-8") + b"\n"


def _is_derived(line: bytes) -> bool:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return False
    return (
        isinstance(row, dict)
        and tuple(row) == KEYS
        and all(isinstance(row[key], str) and PICTURE.fullmatch(row[key]) for key in KEYS[:2])
    )
