"""A rated data set on disk: `images/`, what was drawn, what was answered, and the pairs that follow.

Every process that uses one sees what the others append. In memory is what the logs say; a call looks at their sizes
and times of change and reads what is new.
"""

from __future__ import annotations

import contextlib
import hashlib
import random
import threading
import time
from collections.abc import Collection, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..files import replacing, write_text
from .checks import check_text, check_vote
from .derived import Derived, Preference
from .disk import file_lock, on_disk, sweep
from .names import GUIDELINE, IMAGES, LOCK, METADATA, Conflict, NotThere, TasteError
from .plan import Shown
from .records import MOST_SECONDS, Candidate, Pair, Undo, Vote, candidate_of, pair_of
from .sentence import Sentence
from .state import State

LONGEST_PROMPT, LONGEST_GUIDELINE = 20_000, 500


class TasteDataset:
    """One folder. All methods may be called from any thread."""

    def __init__(self, folder: Path, rng: random.Random | None = None) -> None:
        self.folder = Path(folder)
        self.rng = rng or random.Random()
        self._state = State(self.folder)
        self._derived = Derived(self.folder / METADATA)
        self._derived_at = -1
        self._lock, self._deriving = threading.RLock(), threading.Lock()
        self._swept = False

    def exists(self) -> bool:
        return self._state.candidates.path.is_file()

    def changed(self) -> float:
        """When something was drawn or answered last, in seconds since 1970."""
        times = [0.0]
        for log in (self._state.candidates, self._state.ratings):
            with contextlib.suppress(FileNotFoundError):
                times.append(log.path.stat().st_mtime)
        return max(times)

    @contextlib.contextmanager
    def _read(self, soon: bool = False) -> Iterator[State]:
        with self._lock:
            self._state.refresh(soon)
            yield self._state

    def candidates(self) -> dict[str, Candidate]:
        """By id, those whose pictures are there, in the order in which they were drawn."""
        with self._read() as state:
            return {name: one for name, one in state.pictures.known.items() if name in state.pictures.there}

    def votes(self) -> list[Vote]:
        """Those in force, oldest first."""
        with self._read() as state:
            return list(state.tally.votes.values())

    def pairs(self) -> list[Preference]:
        """(chosen id, rejected id, prompt) of every pair that has a better picture, in the order of the ids."""
        with self._read() as state:
            verdicts, known, there = dict(state.tally.verdicts), state.pictures.known, state.pictures.there.copy()
        return [
            (chosen, pair[0] if chosen == pair[1] else pair[1], known[chosen].prompt)
            for pair, chosen in sorted(verdicts.items())
            if there.issuperset(pair)
        ]

    def counts(self) -> dict[str, int]:
        """How many ``candidates`` there are, and how many ``prompts`` they are for."""
        with self._read() as state:
            return {"candidates": len(state.pictures.there), "prompts": len(state.pictures.prompts)}

    def alone(self) -> int:
        """How many prompts have one picture only: a pair takes two."""
        with self._read(soon=True) as state:
            return sum(len(pictures) == 1 for pictures in state.pictures.prompts.values())

    def progress(self, rater: str) -> dict[str, Any]:
        """Pairs that a rater has answered (``rated``) and is still to be asked (``waiting``), ``pairs`` that are usable
        by all raters' votes, and ``agreement`` with oneself: repeats that were answered alike, and of how many."""
        with self._read(soon=True) as state:
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
        with self._read(soon=True) as state:
            vote = state.tally.rater(rater).last()
            return vote.rating if vote else None

    def notes(self) -> list[Sentence]:
        """A sentence for each kind of thing in the files that does not count."""
        with self._read(soon=True) as state:
            return state.notes()

    def next_pair(self, rater: str, avoid: Collection[Pair] = (), tab: str = "") -> Shown | None:
        """The pair to show a rater in a window next, see :meth:`.plan.Plan.next`; None where nothing is left."""
        with self._read() as state:
            taken = {pair_of(*pair) for pair in avoid}
            return state.plan(rater).next(state.pictures, state.tally.rater(rater), tab, taken, self.rng)

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
        with self._writing() as state:
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
                state.pictures.wrote(name)
            if before is None:
                state.candidates.append([candidate.row()])
            state.refresh(soon=True)
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
        with self._writing() as state:
            new: dict[str, Vote] = {}
            answered: set[tuple[str, Pair, bool]] = set()
            stands = []
            for vote in votes:
                check_vote(vote, state.pictures.known)
                again = vote.repeat and vote.pair in state.tally.rater(vote.rater).first
                seconds = None if vote.seconds is None else round(min(vote.seconds, MOST_SECONDS), 3)
                vote = replace(vote, repeat=again, seconds=seconds)
                before = state.tally.found(vote.rating) or new.get(vote.rating)
                if before is not None and _answer(before) != _answer(vote):
                    raise Conflict(
                        "otherAnswer",
                        "the rating {rating} is another answer's; make a new id for each",
                        rating=vote.rating,
                    )
                place = (vote.rater, vote.pair, vote.repeat)
                if before is None and place not in answered and state.tally.stands(vote):
                    answered.add(place)
                    new[vote.rating] = vote
                stands.append(vote.rating in new or vote.rating in state.tally.votes)
            if new:
                state.ratings.append(vote.row() for vote in new.values())
                state.refresh(soon=True)
            return stands

    def undo(self, rating: str, rater: str) -> Shown:
        """Takes a rater's own vote back; the pair as it was shown. Said again it changes nothing and gives the same.

        Raises:
            NotThere: where the rater has no such vote.
            NotWritten: when the disk does not take it.
        """
        with self._writing() as state:
            vote = state.tally.found(rating)
            if vote is None or vote.rater != rater:
                raise NotThere("noVote", "there is no such vote of yours to take back")
            if rating in state.tally.votes:
                state.ratings.append([Undo(rating, rater, round(time.time(), 3)).row()])
                state.refresh(soon=True)
            return Shown(vote.left, vote.right, state.pictures.known[vote.left].prompt, vote.repeat)

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
        return self._state.changes != self._derived_at

    def derive(self) -> int:
        """Writes metadata.jsonl anew where it says something else than the votes; how many pairs it has.

        Raises:
            Conflict: where metadata.jsonl is not one that was derived.
            NotWritten: when the disk does not take it.
        """
        with self._deriving, on_disk(self.folder):
            with self._read() as state:
                changes = state.changes
            pairs = self.pairs()
            if self._derived.differs(pairs):  # else a folder that may only be read is as good
                # A lock of its own: a vote does not wait for this.
                with file_lock(self.folder / f".{METADATA}.lock"):
                    sweep(self.folder, METADATA)
                    pairs = self.pairs()
                    self._derived.write(pairs)
            self._derived_at = changes
            return len(pairs)

    @contextlib.contextmanager
    def _writing(self) -> Iterator[State]:
        """Alone among threads and processes, with everything read that others wrote."""
        with self._lock, on_disk(self.folder):
            (self.folder / IMAGES).mkdir(parents=True, exist_ok=True)
            with file_lock(self.folder / LOCK):
                if not self._swept:
                    sweep(self.folder / IMAGES, "*.png")
                    sweep(self.folder, GUIDELINE)
                    self._swept = True
                self._state.refresh(soon=True)
                yield self._state


def _answer(vote: Vote) -> tuple[str, ...]:
    return vote.left, vote.right, vote.choice, vote.rater
