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


class Derived:
    """The file of one data set; lines that were written before are kept ready."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lines: dict[Preference, bytes] = {}
        # What the file held when this last looked, and how to see that it still does.
        self._seen: tuple[tuple[int, int, int] | None, bytes] = None, b""

    def write(self, pairs: Iterable[Preference]) -> None:
        """Writes the pairs whole or not at all, where the file says something else.

        Raises:
            Conflict: where the file holds what this did not write.
        """
        self._lines = {pair: self._lines.get(pair) or _line(pair) for pair in pairs}
        data = b"".join(self._lines.values())
        if self._stamp() != self._seen[0]:
            before = self.path.read_bytes() if self.path.exists() else b""
            if not all(map(_is_derived, before.splitlines())):
                raise Conflict(
                    f"{self.path} has lines that come from no rating, and is left as it is; move it elsewhere"
                )
            self._seen = self._stamp(), before
        if data != self._seen[1]:
            with replacing(self.path) as temporary:
                temporary.write_bytes(data)
            self._seen = self._stamp(), data

    def _stamp(self) -> tuple[int, int, int] | None:
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
