"""The candidates of a data set by prompt: those whose pictures are there."""

from __future__ import annotations

import os
import time
from pathlib import Path

from .pairing import blocks_of
from .records import Candidate

# A folder's time of change may stand still for so long, so a list that is younger is not relied on for long: two
# seconds on FAT, whose times are whole seconds, some milliseconds elsewhere.
UNSURE_NS, UNSURE_WHOLE_SECONDS_NS = 100_000_000, 2_500_000_000
SECOND_NS = 1_000_000_000


class Pictures:
    """Candidates whose pictures are in a folder.

    Attributes:
        known: every candidate by its id, also one whose picture was removed.
        there: ids whose picture is there.
        prompts: by prompt, those ids in the order of the log.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.clear()

    def clear(self) -> None:
        self.known: dict[str, Candidate] = {}
        self.there: set[str] = set()
        self.prompts: dict[str, list[str]] = {}
        self._listing: list[str] = []
        self._names: set[str] = set()
        self._listed_at: tuple[int, int] | None = None
        self._changed: set[str] = set()

    def add(self, candidate: Candidate) -> bool:
        """Adds a candidate; False where its id is another prompt's. One that is known stays as it is."""
        before = self.known.setdefault(candidate.id, candidate)
        return before.prompt == candidate.prompt

    def look(self, added: list[Candidate], soon: bool = False) -> None:
        """Takes in which pictures are there, and which of the candidates are new.

        Args:
            added: candidates that are new.
            soon: whether a list that may have missed a change of the moment in which it was made is good enough for
                now, since another look follows.
        """
        listing = self._list(soon and all(candidate.id in self._names for candidate in added))
        came: set[str] = set()
        # Two lists are compared sooner than two sets are made, and mostly they are the same.
        if listing is not None and listing != self._listing:
            now, before = set(listing), set(self._listing)
            came, gone = _ids(now - before), _ids(before - now)
            self._listing = listing
            self._names |= came
            self._names -= gone
            for name in gone & self.there:
                self._remove(name)
        came &= self.known.keys()
        # In the order of the log, which those are in that came with it.
        self._put(added if came.issubset(candidate.id for candidate in added) else list(self.known.values()))

    def _remove(self, name: str) -> None:
        self.there.discard(name)
        prompt = self.known[name].prompt
        self._changed.add(prompt)
        self.prompts[prompt].remove(name)
        if not self.prompts[prompt]:
            del self.prompts[prompt]

    def _put(self, candidates: list[Candidate]) -> None:
        for candidate in candidates:
            if candidate.id in self._names and candidate.id not in self.there:
                self.there.add(candidate.id)
                self.prompts.setdefault(candidate.prompt, []).append(candidate.id)
                self._changed.add(candidate.prompt)

    def wrote(self, name: str) -> None:
        """Takes in a picture that was put into the folder just now, without the time that a list takes. The list is
        made soon: others may have changed something in the same moment."""
        if name not in self._names:
            self._names.add(name)
            self._listing.append(f"{name}.png")
        if name in self.known:
            self._put([self.known[name]])
        changed = self._folder_changed()
        self._listed_at = changed, changed

    def _list(self, soon: bool) -> list[str] | None:
        """The names of the files in the folder; None where it surely did not change or, ``soon``, as far as its time
        tells."""
        changed = self._folder_changed()
        if self._listed_at is not None and changed == self._listed_at[0]:
            listed = self._listed_at[1]
            unsure = UNSURE_NS if changed % SECOND_NS else UNSURE_WHOLE_SECONDS_NS
            if changed == 0 or listed - changed > unsure or soon:
                return None
        self._listed_at = changed, time.time_ns()
        return os.listdir(self.folder) if changed else []

    def _folder_changed(self) -> int:
        """In nanoseconds since 1970; 0 where there is no folder."""
        try:
            return os.stat(self.folder).st_mtime_ns
        except FileNotFoundError:
            return 0

    def take_changes(self) -> set[str]:
        """The prompts whose pictures changed since this was asked last."""
        changed, self._changed = self._changed, set()
        return changed

    def blocks(self, prompt: str) -> list[list[str]]:
        return list(blocks_of(self.prompts.get(prompt, [])))


def _ids(files: set[str]) -> set[str]:
    """Of the pictures among some files."""
    return {name[:-4] for name in files if name.endswith(".png")}
