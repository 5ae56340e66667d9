"""A rated data set on disk: `images/`, what was drawn, what was answered, and the pairs that follow.

Every process that uses one sees what the others append. In memory is what the logs say; a call looks at their sizes
and times of change and reads what is new.

An answer waits for nothing that takes longer the more candidates there are, but where a data set is opened: the folder
of pictures is listed, a picture written and metadata.jsonl derived while others are answered.
"""

from __future__ import annotations

import contextlib
import hashlib
import random
import threading
import time
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from typing import Any

from ..files import replacing, write_text
from .checks import check_text, to_keep
from .derived import Derived, Preference
from .disk import file_lock, on_disk, sweep
from .memory import Memory
from .names import DRAWING_LOCK, GUIDELINE, IMAGES, LOCK, METADATA, Conflict, NotThere, TasteError
from .plan import Shown
from .records import Candidate, Pair, Undo, Vote, candidate_of, pair_of
from .sentence import Sentence

LONGEST_PROMPT, LONGEST_GUIDELINE = 20_000, 500
# So many pairs are found to be removed before the folder is listed.
MOST_LOOKS = 3


class TasteDataset:
    """One folder. All methods may be called from any thread."""

    def __init__(self, folder: Path, rng: random.Random | None = None) -> None:
        self.folder = Path(folder)
        self.rng = rng or random.Random()
        self._memory = Memory(self.folder)
        self._state, self._read = self._memory.state, self._memory.read
        self._derived = Derived(self.folder / METADATA)
        self._derived_at = -1
        self._writer, self._drawer, self._deriver = threading.Lock(), threading.Lock(), threading.Lock()
        self._swept: set[str] = set()

    def exists(self) -> bool:
        return self._state.candidates.path.is_file()

    def changed(self) -> float:
        """When something was drawn or answered last, in seconds since 1970."""
        times = [0.0]
        for log in (self._state.candidates, self._state.ratings):
            with contextlib.suppress(FileNotFoundError):
                times.append(log.path.stat().st_mtime)
        return max(times)

    def at_once(self) -> contextlib.AbstractContextManager[None]:
        """Within the block, which writes nothing, all that is asked is answered from one look at the disk."""
        return self._memory.at_once()

    def candidates(self) -> dict[str, Candidate]:
        """By id, those whose pictures are there, in the order in which they were drawn."""
        with self._read(exact=True) as state:
            known, there = state.pictures.known.copy(), state.pictures.there.copy()
        return {name: one for name, one in known.items() if name in there}

    def votes(self) -> list[Vote]:
        """Those in force, oldest first."""
        with self._read() as state:
            return list(state.tally.votes.values())

    def pairs(self) -> list[Preference]:
        """(chosen id, rejected id, prompt) of every pair that has a better picture, in the order of the ids."""
        with self._read(exact=True) as state:
            found = state.preferences()
        return [preferred for _, preferred in sorted(found) if preferred]

    def counts(self) -> dict[str, int]:
        """How many ``candidates`` there are, and how many ``prompts`` they are for."""
        with self._read(exact=True) as state:
            return {"candidates": len(state.pictures.there), "prompts": len(state.pictures.prompts)}

    def alone(self) -> int:
        """How many prompts have one picture only: a pair takes two."""
        with self._read() as state:
            return sum(len(pictures) == 1 for pictures in state.pictures.prompts.values())

    def progress(self, rater: str) -> dict[str, Any]:
        """Pairs that a rater has answered (``rated``) and is still to be asked (``waiting``), ``pairs`` that are usable
        by all raters' votes, and ``agreement`` with oneself: repeats that were answered alike, and of how many."""
        with self._read() as state:
            votes, there, verdicts = state.tally.rater(rater), state.pictures.there, state.tally.verdicts
            complete = len(there) == len(state.pictures.known)
            return {
                "rated": len(votes.first),
                "waiting": state.plan(rater).waiting(),
                "pairs": len(verdicts) if complete else sum(map(there.issuperset, verdicts)),
                "agreement": list(votes.agreement()),
            }

    def last(self, rater: str) -> str | None:
        """The id of a rater's last vote in force."""
        with self._read() as state:
            vote = state.tally.rater(rater).last()
            return vote.rating if vote else None

    def notes(self) -> list[Sentence]:
        """A sentence for each kind of thing in the files that does not count."""
        with self._read() as state:
            return state.notes()

    def next_pair(self, rater: str, avoid: Collection[Pair] = (), tab: str = "") -> Shown | None:
        """The pair to show a rater in a window next, see :meth:`.plan.Plan.next`; None where nothing is left."""
        taken = {pair_of(*pair) for pair in avoid}
        looks = 0
        while True:
            exact = looks == MOST_LOOKS
            with self._read(exact) as state:
                shown = state.plan(rater).next(state.pictures, state.tally.rater(rater), tab, taken, self.rng)
                if exact or (shown is not None and state.check(shown.pair)):
                    return shown
            looks = MOST_LOOKS if shown is None else looks + 1

    def add_candidate(
        self,
        png: bytes,
        prompt: str,
        seeds: Iterable[int] = (),
        models: Iterable[str] = (),
        width: int = 0,
        height: int = 0,
    ) -> tuple[str, bool]:
        """Keeps a picture as a candidate for its prompt; its id, and whether it is new.

        Raises:
            TasteError: for a prompt that is empty or no text.
            Conflict: when the same picture is another prompt's.
            NotWritten: when the disk does not take it.
        """
        check_text(prompt, "prompt", LONGEST_PROMPT)
        name = hashlib.sha256(png).hexdigest()[:16]
        candidate = Candidate(name, prompt, tuple(seeds), tuple(models), width, height, round(time.time(), 3))
        if candidate_of(candidate.row()) is None:
            raise TasteError("emptyPrompt", "`prompt` is empty; connect the prompt that the pictures were drawn for")
        # Locks of its own: a vote does not wait for this.
        with self._drawer, on_disk(self.folder), file_lock(self.folder / DRAWING_LOCK):
            (self.folder / IMAGES).mkdir(exist_ok=True)
            self._sweep(self.folder / IMAGES, "*.png")
            with self._read() as state:
                before = state.pictures.known.get(name)
            if before is not None and before.prompt != prompt:
                raise Conflict(
                    "otherPrompt",
                    "the picture {picture} is a candidate for another prompt already; it stays there",
                    picture=name,
                )
            file = self.folder / IMAGES / f"{name}.png"
            if not file.is_file() or file.read_bytes() != png:
                with replacing(file) as temporary:
                    temporary.write_bytes(png)
            if before is None:
                self._state.candidates.append([candidate.row()])
            with self._memory.lock:
                self._state.pictures.wrote(name)
                self._state.refresh()
        return name, before is None

    def vote(
        self,
        rating: str,
        left: str,
        right: str,
        choice: str,
        rater: str,
        seconds: float | None = None,
        repeat: bool = False,
    ) -> bool:
        """Keeps an answer; whether it stands. It does not where its rater has answered the pair already and it is no
        repeat, or took it back. Said again with the same id, it changes nothing and gives the same.

        Raises:
            NotThere: for a picture that is no candidate.
            Conflict: where the id is another answer's.
            TasteError: for what can be no answer.
            NotWritten: when the disk does not take it.
        """
        (stands,) = self.vote_all([Vote(rating, left, right, choice, rater, round(time.time(), 3), seconds, repeat)])
        return stands

    def vote_all(self, votes: Iterable[Vote]) -> list[bool]:
        """Keeps many answers in one write: all or, where one is refused, none; see :meth:`vote`."""
        with self._writing():
            with self._read() as state:
                new, stands = to_keep(votes, state.pictures.known, state.tally)
            if new:
                self._append(vote.row() for vote in new.values())
            return stands

    def undo(self, rating: str, rater: str) -> Shown:
        """Takes a rater's own vote back; the pair as it was shown. Said again it changes nothing and gives the same.

        Raises:
            NotThere: where the rater has no such vote.
            NotWritten: when the disk does not take it.
        """
        with self._writing():
            with self._read() as state:
                vote = state.tally.found(rating)
                if vote is None or vote.rater != rater:
                    raise NotThere("noVote", "there is no such vote of yours to take back")
                in_force, prompt = rating in state.tally.votes, state.pictures.known[vote.left].prompt
            if in_force:
                self._append([Undo(rating, rater, round(time.time(), 3)).row()])
            return Shown(vote.left, vote.right, prompt, vote.repeat)

    def _append(self, rows: Iterable[dict[str, Any]]) -> None:
        """Puts answers on the disk, while others are answered, and takes them in."""
        self._state.ratings.append(rows)
        with self._memory.lock:
            self._state.refresh()

    def guideline(self) -> str:
        """What raters of this data set should look at; empty where nobody wrote it."""
        try:
            with (self.folder / GUIDELINE).open("rb") as file:
                text = file.read(4 * LONGEST_GUIDELINE).decode("utf-8", "replace")
        except FileNotFoundError:
            return ""
        return text.strip()[:LONGEST_GUIDELINE]

    def write_guideline(self, text: str) -> str:
        """Keeps it; the text as it was kept."""
        check_text(text, "guideline", LONGEST_GUIDELINE)
        with self._writing():
            write_text(self.folder / GUIDELINE, text.strip())
        return text.strip()

    @property
    def stale(self) -> bool:
        """Whether something came in since metadata.jsonl was derived, as far as this process has seen."""
        return self._state.changes != self._derived_at or self._state.pictures.changed

    def derive(self) -> int:
        """Writes metadata.jsonl anew where it says something else than the votes; how many pairs it has.

        Raises:
            Conflict: where metadata.jsonl is not one that was derived.
            NotWritten: when the disk does not take it.
        """
        with self._deriver, on_disk(self.folder):
            changes = self._catch_up()
            if self._derived.differs():  # else a folder that may only be read is as good
                # A lock of its own: a vote does not wait for this.
                with file_lock(self.folder / f".{METADATA}.lock"):
                    sweep(self.folder, METADATA)
                    changes = self._catch_up()
                    self._derived.write()
            self._derived_at = changes
            return len(self._derived)

    def _catch_up(self) -> int:
        """Has what is derived follow the votes; how far the data set had come then."""
        with self._read(exact=True) as state:
            changes, judged = state.changes, state.take_judged()
            anew = state.preferences() if judged is None else None
        if anew is not None:
            self._derived.clear()
        self._derived.update(judged or anew or ())
        return changes

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        """Alone among threads and processes, for answers and the guideline."""
        with self._writer, on_disk(self.folder), file_lock(self.folder / LOCK):
            self._sweep(self.folder, GUIDELINE)
            yield

    def _sweep(self, folder: Path, names: str) -> None:
        """Once, as :func:`.disk.sweep`."""
        if names not in self._swept:
            sweep(folder, names)
            self._swept.add(names)
