"""The candidates of a data set by prompt: those whose pictures are there."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from .disk import STRETCH
from .pace import gently
from .pairing import blocks_of
from .records import Candidate

# A folder's time of change may stand still for so long, so a list that is younger is not relied on: two seconds on FAT,
# whose times are whole seconds, some milliseconds elsewhere.
UNSURE_NS, UNSURE_WHOLE_SECONDS_NS = 100_000_000, 2_500_000_000
SECOND_NS = 1_000_000_000
# So many new candidates are looked up one by one; for more, the folder is listed.
FEW = 16
# Number of a folder and its time of change in nanoseconds since 1970; None where there is no folder.
Stamp = tuple[int, int] | None


@dataclass(frozen=True)
class Listing:
    """What the folder held: its ``stamp`` before, when that was, and the ids that ``came`` and are ``gone`` since the
    list before. ``asked`` are the new candidates that it was made for."""

    stamp: Stamp
    time_ns: int
    came: set[str]
    gone: set[str]
    asked: list[Candidate]


class Pictures:
    """Candidates whose pictures are in a folder.

    To list a large folder takes longer than an answer may. So a list is made by :meth:`read_folder`, which needs no
    lock, between :meth:`begin` and :meth:`take`, which do; and what is written by this process, or comes with a new
    line, is known without one.

    Attributes:
        known: every candidate by its id, also one whose picture was removed.
        there: ids whose picture is there.
        prompts: by prompt, those ids in the order of the log.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._names: set[str] = set()
        self._listed: tuple[Stamp, int] | None = None
        # Written since the list under way was begun: it may lack them.
        self._wrote: set[str] = set()
        self.clear()

    def clear(self) -> None:
        """Forgets the candidates, and not what is in the folder."""
        self.known: dict[str, Candidate] = {}
        self.there: set[str] = set()
        self.prompts: dict[str, list[str]] = {}
        self._numbers: dict[str, int] = {}
        # New ones, whose pictures nobody looked for yet.
        self._new: list[Candidate] = []
        self._moved: set[str] = set()

    def add(self, candidate: Candidate) -> bool:
        """Adds a candidate; False where its id is another prompt's. One that is known stays as it is."""
        before = self.known.setdefault(candidate.id, candidate)
        self._numbers.setdefault(candidate.id, len(self._numbers))
        if before.prompt != candidate.prompt:
            return False
        self._new.append(before)
        return True

    def look(self) -> None:
        """Looks for the pictures of new candidates, where they are few; else :meth:`unlisted` says that it takes a
        list."""
        if self.unlisted():
            return
        new, self._new = self._new, []
        for candidate in new:
            if candidate.id not in self._names and self._is_there(candidate.id):
                self._names.add(candidate.id)
        self._put(new)

    def unlisted(self) -> bool:
        """Whether there is too much that only a list can tell."""
        unknown = len(self._new) > FEW and sum(candidate.id not in self._names for candidate in self._new) > FEW
        return self._listed is None or unknown

    @property
    def changed(self) -> bool:
        """Whether the folder is another one than was listed, as far as its time tells."""
        return self._listed is None or self._stamp() != self._listed[0]

    @property
    def unsure(self) -> bool:
        """Whether the folder may be another one than was listed: in the same moment its time may stand still."""
        if self._listed is None or self.changed:
            return True
        stamp, listed = self._listed
        if stamp is None:
            return False
        return listed - stamp[1] <= (UNSURE_NS if stamp[1] % SECOND_NS else UNSURE_WHOLE_SECONDS_NS)

    def begin(self) -> list[Candidate]:
        """Begins a list; the candidates that it is to look for. One at a time."""
        self._wrote = set()
        return list(self._new)

    def read_folder(self, asked: list[Candidate]) -> Listing:
        """Lists the folder."""
        stamp, time_ns = self._stamp(), time.time_ns()
        names: set[str] = set()
        if stamp is not None:
            with os.scandir(self.folder) as files:
                names = {file.name[:-4] for file in gently(files, STRETCH) if file.name.endswith(".png")}
        return Listing(stamp, time_ns, names - self._names, self._names - names, asked)

    def take(self, listing: Listing) -> None:
        """Takes a list in."""
        gone = listing.gone - self._wrote
        self._names |= listing.came
        self._names -= gone
        self._listed = listing.stamp, listing.time_ns
        for name in gone & self.there:
            self._remove(name)
        asked = {candidate.id for candidate in listing.asked}
        self._new = [candidate for candidate in self._new if candidate.id not in asked]
        found = (listing.came | asked) & self.known.keys()
        self._put(self.known[name] for name in sorted(found, key=self._numbers.__getitem__))

    def wrote(self, name: str) -> None:
        """Takes in a picture that was put into the folder just now."""
        self._names.add(name)
        self._wrote.add(name)
        if name in self.known:
            self._put([self.known[name]])

    def check(self, names: Iterable[str]) -> bool:
        """Whether these pictures are there still."""
        gone = [name for name in names if name in self.there and not self._is_there(name)]
        for name in gone:
            self._names.discard(name)
            self._remove(name)
        return not gone

    def _remove(self, name: str) -> None:
        self.there.discard(name)
        prompt = self.known[name].prompt
        self._moved.add(name)
        self.prompts[prompt].remove(name)
        if not self.prompts[prompt]:
            del self.prompts[prompt]

    def _put(self, candidates: Iterable[Candidate]) -> None:
        for candidate in candidates:
            if candidate.id in self._names and candidate.id not in self.there:
                self.there.add(candidate.id)
                self.prompts.setdefault(candidate.prompt, []).append(candidate.id)
                self._moved.add(candidate.id)

    def _is_there(self, name: str) -> bool:
        return (self.folder / f"{name}.png").is_file()

    def _stamp(self) -> Stamp:
        try:
            stat = os.stat(self.folder)
        except FileNotFoundError:
            return None
        return stat.st_ino, stat.st_mtime_ns

    def take_moved(self) -> set[str]:
        """The candidates whose pictures came or went since this was asked last."""
        moved, self._moved = self._moved, set()
        return moved

    def blocks(self, prompt: str) -> list[list[str]]:
        return list(blocks_of(self.prompts.get(prompt, [])))
