"""What the files of a data set say, in memory: read once, then only what is new."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from .derived import Preference, preference
from .log import Log
from .names import CANDIDATES, IMAGES, RATINGS
from .pictures import Pictures
from .plan import Plan
from .records import Candidate, Pair, Undo, Vote, answer_of, candidate_of
from .sentence import Sentence
from .tally import Tally


class State:
    """Candidates, votes in force and plans of a folder.

    Attributes:
        candidates: the log of what was drawn.
        ratings: the log of what was answered.
        pictures: the candidates.
        tally: the votes.
        changes: grows with everything that comes in.
    """

    def __init__(self, folder: Path) -> None:
        self.candidates, self.ratings = Log(folder / CANDIDATES), Log(folder / RATINGS)
        self.pictures = Pictures(folder / IMAGES)
        self.changes = 0
        self._foreign_candidates = 0
        self._start_counting()

    def _start_counting(self) -> None:
        self.tally = Tally()
        self._plans: dict[str, Plan] = {}
        # Votes on pictures that no line of candidates.jsonl names.
        self._homeless: list[Vote] = []
        self._foreign_ratings = 0
        # Pairs whose preference may be another one; None for all.
        self._judged: set[Pair] | None = None

    def plan(self, rater: str) -> Plan:
        plan = self._plans.setdefault(rater, Plan())
        plan.refresh(self.pictures, self.tally.rater(rater))
        return plan

    def refresh(self) -> None:
        """Takes in what is new in the logs. Where :meth:`.pictures.Pictures.unlisted` says so, the pictures of what was
        drawn follow with a list and :meth:`settle`."""
        added, anew = self._draw()
        at_home = {candidate.id for candidate in added}
        if anew or (added and any(not at_home.isdisjoint(vote.pair) for vote in self._homeless)):
            self.ratings = Log(self.ratings.path)
            self._start_counting()
        self._count()
        self.settle()

    def settle(self) -> None:
        """Has the plans follow the pictures that came or went."""
        moved = self.pictures.take_moved()
        if not self.tally.voted.isdisjoint(moved):
            self._judged = None
        for prompt in {self.pictures.known[name].prompt for name in moved}:
            self.changes += 1
            for plan in self._plans.values():
                plan.forget(prompt)

    def check(self, pair: Pair) -> bool:
        """Whether both pictures are there still."""
        there = self.pictures.check(pair)
        self.settle()
        return there

    def take_judged(self) -> Iterable[tuple[Pair, Preference | None]] | None:
        """The pairs that may have another preference, or none any more, since this was asked last; None where that may
        be all of them."""
        judged, self._judged = self._judged, set()
        if judged is None:
            return None
        verdicts, pictures = self.tally.verdicts, self.pictures
        return [(pair, preference(pair, verdicts.get(pair), pictures.known, pictures.there)) for pair in judged]

    def preferences(self) -> Iterator[tuple[Pair, Preference | None]]:
        """Every pair that has a better picture, with what is preferred; it is made as it is read, without a lock."""
        verdicts, known, there = self.tally.verdicts.copy(), self.pictures.known, self.pictures.there.copy()
        return ((pair, preference(pair, chosen, known, there)) for pair, chosen in verdicts.items())

    def _draw(self) -> tuple[list[Candidate], bool]:
        """Takes in the new lines of candidates.jsonl; the candidates in them, and whether it is another file."""
        anew, rows = self.candidates.read()
        if anew:
            self.pictures.clear()
            self._plans.clear()
            self._foreign_candidates = 0
        added = []
        for row in rows:
            candidate = candidate_of(row)
            if candidate is None or not self.pictures.add(candidate):
                self._foreign_candidates += 1
            else:
                added.append(candidate)
        self.pictures.look()
        self.changes += anew
        return added, anew

    def _count(self) -> None:
        """Takes in the new lines of ratings.jsonl."""
        anew, rows = self.ratings.read()
        if anew:
            self._start_counting()
        self.changes += anew + len(rows)
        known = self.pictures.known
        for row in rows:
            answer = answer_of(row)
            if answer is None:
                self._foreign_ratings += 1
            elif isinstance(answer, Undo):
                if vote := self.tally.undo(answer):
                    self._forget(vote)
            elif answer.left not in known or answer.right not in known:
                self._homeless.append(answer)
            elif known[answer.left].prompt != known[answer.right].prompt:
                self._foreign_ratings += 1
            elif self.tally.add(answer):
                self._forget(answer)

    def _forget(self, vote: Vote) -> None:
        if self._judged is not None:
            self._judged.add(vote.pair)
        if plan := self._plans.get(vote.rater):
            plan.forget(self.pictures.known[vote.left].prompt, vote.pair)

    def notes(self) -> list[Sentence]:
        """A sentence for each kind of thing in the files that does not count."""
        skipped = {
            CANDIDATES: self.candidates.skipped + self._foreign_candidates,
            RATINGS: self.ratings.skipped + self._foreign_ratings,
        }
        found = [
            Sentence(
                "skippedLines",
                "lines of {file} that are cut off or foreign, and are skipped: {count}",
                file=file,
                count=count,
            )
            for file, count in skipped.items()
        ]
        found += [
            Sentence(
                "homelessVotes",
                "votes of {file} on pictures that {candidates} does not name: {count}",
                file=RATINGS,
                candidates=CANDIDATES,
                count=len(self._homeless),
            ),
            Sentence(
                "missingPictures",
                "pictures of {candidates} that are not in {folder}/: {count}",
                candidates=CANDIDATES,
                folder=IMAGES,
                count=len(self.pictures.known) - len(self.pictures.there),
            ),
        ]
        return [sentence for sentence in found if sentence.values["count"]]
