"""metadata.jsonl: the pairs as the trainer reads them."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path

from ..files import replacing
from .names import IMAGES, Conflict
from .pace import gently
from .records import Candidate, Pair

PICTURE = re.compile(rf"{IMAGES}/[0-9a-f]{{16}}\.png")
KEYS = ("chosen_file_name", "rejected_file_name", "prompt")
# (id of the chosen picture, id of the rejected one, prompt).
Preference = tuple[str, str, str]
# How many lines are made between two breaths.
STRETCH = 50
# Number, size and time of change of a file.
Stamp = tuple[int, int, int]


class Derived:
    """The file of one data set; its lines are kept ready."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lines: dict[Pair, bytes] = {}
        self._order: list[Pair] = []
        # What the file held when this last looked, and how to see that it still does.
        self._seen: tuple[Stamp | None, bytes] = None, b""
        # How to see that it is what this wrote last.
        self._own: Stamp | None = None

    def __len__(self) -> int:
        return len(self._order)

    def update(self, preferences: Iterable[tuple[Pair, Preference | None]]) -> None:
        """Takes in what is preferred of some pairs now; None where nothing is."""
        gone = False
        for pair, preferred in gently(preferences, STRETCH):
            if preferred is not None:
                if pair not in self._lines:
                    self._order.append(pair)
                self._lines[pair] = _line(preferred)
            elif self._lines.pop(pair, None):
                gone = True
        if gone:
            self._order = [pair for pair in self._order if pair in self._lines]
        # Mostly in order already, which takes no longer than a look at each.
        self._order.sort()

    def clear(self) -> None:
        self._lines, self._order = {}, []

    def differs(self) -> bool:
        """Whether the file says something else than the pairs; none at all is the same as no file."""
        return self._data() != self._before()

    def write(self) -> None:
        """Writes the pairs whole or not at all.

        Raises:
            Conflict: where the file holds what this did not write.
        """
        before = self._before()
        if self._seen[0] != self._own and not all(map(_is_derived, gently(before.splitlines(), STRETCH))):
            raise Conflict(
                "foreignMetadata",
                "{file} has lines that come from no rating, and is left as it is; move it elsewhere",
                file=str(self.path),
            )
        data = self._data()
        with replacing(self.path) as temporary:
            temporary.write_bytes(data)
        self._own = self._stamp()
        self._seen = self._own, data

    def _data(self) -> bytes:
        """In the order of the pairs' ids."""
        return b"".join(map(self._lines.__getitem__, self._order))

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


def preference(
    pair: Pair, chosen: str | None, known: Mapping[str, Candidate], there: Collection[str]
) -> Preference | None:
    """What is preferred of a pair; None where nothing is ``chosen``, or not both pictures are ``there``."""
    if chosen is None or not all(picture in there for picture in pair):
        return None
    return chosen, pair[0] if chosen == pair[1] else pair[1], known[chosen].prompt


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
