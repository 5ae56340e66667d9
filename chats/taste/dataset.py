"""A rated data set on disk: `images/`, what was drawn, what was answered, and the pairs that follow.

Every process that uses one sees what the others append. In memory is what the logs say; a call looks at their sizes
and times of change and reads what is new.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import random
import threading
import time
from collections.abc import Collection, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from ..files import replacing, write_text
from ..words import shown_error
from . import derived
from .log import Log
from .names import CANDIDATES, GUIDELINE, IMAGES, LOCK, METADATA, RATINGS, Conflict, NotThere, NotWritten, TasteError
from .pictures import Pictures
from .plan import Plan, Shown
from .records import CHOICES, Candidate, Pair, Undo, Vote, answer_of, candidate_of, pair_of
from .tally import Rater, Tally

LOCK_SECONDS, POLL_SECONDS = 20, 0.002
# What a disk answers that has no locks: some network file systems, some containers.
WITHOUT_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)
LONGEST_PROMPT, LONGEST_GUIDELINE = 20_000, 500


class TasteDataset:
    """One folder. All methods may be called from any thread."""

    def __init__(self, folder: Path, rng: random.Random | None = None) -> None:
        self.folder = Path(folder)
        self.rng = rng or random.Random()
        self._lock = threading.RLock()
        self._deriving = threading.Lock()
        self._candidates, self._ratings = Log(self.folder / CANDIDATES), Log(self.folder / RATINGS)
        self._pictures = Pictures(self.folder / IMAGES)
        self._tally = Tally()
        self._plans: dict[str, Plan] = {}
        self._homeless: list[Vote] = []
        self._foreign = [0, 0]
        self._swept = False

    # What is there

    def exists(self) -> bool:
        return self._candidates.path.is_file()

    def changed(self) -> float:
        """When something was drawn or answered last, in seconds since 1970."""
        times = []
        for log in (self._candidates, self._ratings):
            with contextlib.suppress(FileNotFoundError):
                times.append(log.path.stat().st_mtime)
        return max(times, default=0.0)

    def candidates(self) -> dict[str, Candidate]:
        """By id, those whose pictures are there, in the order in which they were drawn."""
        with self._lock:
            self._refresh()
            return {name: one for name, one in self._pictures.known.items() if name in self._pictures.there}

    def votes(self) -> list[Vote]:
        """Those in force, oldest first."""
        with self._lock:
            self._refresh()
            return list(self._tally.votes.values())

    def pairs(self) -> list[tuple[str, str, str]]:
        """(chosen id, rejected id, prompt) of every pair that has a better picture, in the order of the ids."""
        with self._lock:
            self._refresh()
            known, there = self._pictures.known, self._pictures.there
            return [
                (chosen, pair[0] if chosen == pair[1] else pair[1], known[chosen].prompt)
                for pair, chosen in sorted(self._tally.verdicts.items())
                if there.issuperset(pair)
            ]

    def counts(self) -> dict[str, int]:
        """How many ``candidates`` there are, and how many ``prompts`` they are for."""
        with self._lock:
            self._refresh()
            return {"candidates": len(self._pictures.there), "prompts": len(self._pictures.prompts)}

    def progress(self, rater: str) -> dict[str, Any]:
        """Pairs that a rater has answered (``rated``) and is still to be asked (``waiting``), ``pairs`` that are usable
        by all raters' votes, and ``agreement`` with oneself: repeats that were answered alike, and of how many."""
        with self._lock:
            self._refresh()
            votes, there = self._tally.rater(rater), self._pictures.there
            verdicts = self._tally.verdicts
            complete = len(there) == len(self._pictures.known)
            return {
                "rated": len(votes.first),
                "waiting": self._plan(rater, votes).waiting(),
                "pairs": len(verdicts) if complete else sum(map(there.issuperset, verdicts)),
                "agreement": list(votes.agreement()),
            }

    def last(self, rater: str) -> str | None:
        """The id of a rater's last vote in force."""
        with self._lock:
            self._refresh()
            vote = self._tally.rater(rater).last()
            return vote.rating if vote else None

    def notes(self) -> list[str]:
        """A sentence for everything in the files that does not count."""
        with self._lock:
            self._refresh()
            found = []
            for log, foreign in zip((self._candidates, self._ratings), self._foreign, strict=True):
                if log.skipped + foreign:
                    found.append(
                        f"lines of {log.path.name} that are cut off or foreign, and are skipped: "
                        f"{log.skipped + foreign}"
                    )
            if self._homeless:
                found.append(f"votes of {RATINGS} on pictures that {CANDIDATES} does not name: {len(self._homeless)}")
            if missing := len(self._pictures.known) - len(self._pictures.there):
                found.append(f"pictures of {CANDIDATES} that are not in {IMAGES}/: {missing}")
            return found

    # What is asked next

    def next_pair(self, rater: str, avoid: Collection[Pair] = (), tab: str = "") -> Shown | None:
        """The pair to show a rater in a window, see :meth:`.plan.Plan.next`; None where nothing is left."""
        with self._lock:
            self._refresh()
            votes = self._tally.rater(rater)
            taken = {pair_of(*pair) for pair in avoid}
            return self._plan(rater, votes).next(self._pictures, votes, tab, taken, self.rng)

    def _plan(self, rater: str, votes: Rater) -> Plan:
        plan = self._plans.setdefault(rater, Plan())
        plan.refresh(self._pictures, votes)
        return plan

    # What is added

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
        _check_text(prompt, "prompt", LONGEST_PROMPT)
        if not prompt.strip():
            raise TasteError("`prompt` is empty; connect the prompt that the pictures were drawn for")
        name = hashlib.sha256(png).hexdigest()[:16]
        candidate = Candidate(name, prompt, tuple(seeds), tuple(models), width, height, round(time.time(), 3))
        with self._writing():
            before = self._pictures.known.get(name)
            if before is not None and before.prompt != prompt:
                raise Conflict(f"the picture {name} is a candidate for another prompt already; it stays there")
            file = self.folder / IMAGES / f"{name}.png"
            if not file.is_file() or file.read_bytes() != png:
                with replacing(file) as temporary:
                    temporary.write_bytes(png)
            if before is None:
                self._candidates.append([candidate.row()])
            self._refresh()
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
            new: dict[str, Vote] = {}
            answered: set[tuple[str, Pair, bool]] = set()
            stands = []
            for vote in votes:
                self._check(vote)
                vote = replace(vote, repeat=vote.repeat and vote.pair in self._tally.rater(vote.rater).first)
                before = (
                    self._tally.votes.get(vote.rating) or self._tally.undone.get(vote.rating) or new.get(vote.rating)
                )
                if before is not None and _answer(before) != _answer(vote):
                    raise Conflict(f"the rating {vote.rating} is another answer's; make a new id for each")
                place = (vote.rater, vote.pair, vote.repeat)
                if before is None and place not in answered and self._tally.stands(vote):
                    answered.add(place)
                    new[vote.rating] = vote
                stands.append(vote.rating in new or vote.rating in self._tally.votes)
            if new:
                self._ratings.append(vote.row() for vote in new.values())
                self._refresh()
            return stands

    def _check(self, vote: Vote) -> None:
        if answer_of(vote.row()) is None or not vote.rater:
            raise TasteError(
                "a vote has a `rating` of 16 hex digits, two different pictures, a `choice` of "
                f"{', '.join(CHOICES)}, and `seconds` that are a number or nothing"
            )
        left, right = (self._pictures.known.get(name) for name in (vote.left, vote.right))
        if left is None or right is None:
            raise NotThere(f"the picture {vote.left if left is None else vote.right} is no candidate of this data set")
        if left.prompt != right.prompt:
            raise TasteError("the two pictures are for two prompts; a pair is of one")

    def undo(self, rating: str, rater: str) -> Shown:
        """Takes a rater's own vote back; the pair as it was shown. Said again it changes nothing and gives the same.

        Raises:
            NotThere: where the rater has no such vote.
            NotWritten: when the disk does not take it.
        """
        with self._writing():
            vote = self._tally.votes.get(rating) or self._tally.undone.get(rating)
            if vote is None or vote.rater != rater:
                raise NotThere(f"there is no vote {rating} of yours to take back")
            if rating in self._tally.votes:
                self._ratings.append([Undo(rating, rater, round(time.time(), 3)).row()])
                self._refresh()
            return Shown(vote.left, vote.right, self._pictures.known[vote.left].prompt, vote.repeat)

    # What a rater keeps in view

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
        _check_text(text, "guideline", LONGEST_GUIDELINE)
        with self._writing():
            write_text(self.folder / GUIDELINE, text.strip())
        return text.strip()

    # What follows

    def derive(self) -> int:
        """Writes metadata.jsonl anew where it says something else than the votes; how many pairs it has.

        Raises:
            Conflict: where metadata.jsonl is not one that was derived.
            NotWritten: when the disk does not take it.
        """
        with self._deriving, _on_disk(self.folder), _file_lock(self.folder / f".{METADATA}.lock"):
            pairs = self.pairs()
            derived.write(self.folder / METADATA, pairs)
            return len(pairs)

    # How it is kept

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        """Alone among threads and processes, with everything read that others wrote."""
        with self._lock, _on_disk(self.folder):
            (self.folder / IMAGES).mkdir(parents=True, exist_ok=True)
            with _file_lock(self.folder / LOCK):
                if not self._swept:
                    _sweep(self.folder)
                    self._swept = True
                self._refresh()
                yield

    def _refresh(self) -> None:
        """Takes in what is new on the disk."""
        anew, rows = self._candidates.read()
        if anew:
            self._pictures.clear()
            self._plans.clear()
            self._foreign[0] = 0
        added = []
        for row in rows:
            candidate = candidate_of(row)
            if candidate is None or not self._pictures.add(candidate):
                self._foreign[0] += 1
            else:
                added.append(candidate)
        self._pictures.look(added)
        if anew or (added and self._homeless):
            self._ratings = Log(self._ratings.path)
            self._start_counting()
        self._count()
        for prompt in self._pictures.take_changes():
            self._forget(prompt)

    def _start_counting(self) -> None:
        self._tally, self._homeless, self._foreign[1] = Tally(), [], 0
        self._plans.clear()

    def _count(self) -> None:
        """Takes in the new lines of ratings.jsonl."""
        anew, rows = self._ratings.read()
        if anew:
            self._start_counting()
        known = self._pictures.known
        for row in rows:
            answer = answer_of(row)
            if isinstance(answer, Undo):
                answer = self._tally.undo(answer)
            elif answer is None:
                self._foreign[1] += 1
            elif answer.left not in known or answer.right not in known:
                self._homeless.append(answer)
                answer = None
            elif known[answer.left].prompt != known[answer.right].prompt:
                self._foreign[1] += 1
                answer = None
            elif not self._tally.add(answer):
                answer = None
            if answer is not None:
                self._forget(known[answer.left].prompt, answer.rater)

    def _forget(self, prompt: str, rater: str | None = None) -> None:
        for name, plan in self._plans.items():
            if rater is None or name == rater:
                plan.forget(prompt)


def _answer(vote: Vote) -> tuple[str, ...]:
    return vote.left, vote.right, vote.choice, vote.rater


def _check_text(text: str, name: str, longest: int) -> None:
    if len(text) > longest:
        raise TasteError(f"`{name}` has {len(text)} characters; at most {longest} are kept: shorten it")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise TasteError(f"`{name}` holds half of a character (a lone surrogate); write it anew") from error


def _sweep(folder: Path) -> None:
    """Removes what killed processes left half-written, under a name that is nobody's; the lock is held."""
    for place in (folder, folder / IMAGES):
        for file in place.glob(".*.tmp"):
            file.unlink(missing_ok=True)


@contextlib.contextmanager
def _file_lock(path: Path) -> Iterator[None]:
    """Alone among the processes on a file; a disk without locks counts as free."""
    lock = FileLock(path)
    try:
        lock.acquire(timeout=LOCK_SECONDS, poll_interval=POLL_SECONDS)
    except Timeout as error:
        raise NotWritten(f"{path} was held by another process for {LOCK_SECONDS} s; try again") from error
    except OSError as error:
        if error.errno not in WITHOUT_LOCKS:
            raise
    except NotImplementedError:
        pass  # How older versions of the package say the same.
    try:
        yield
    finally:
        lock.release()


@contextlib.contextmanager
def _on_disk(folder: Path) -> Iterator[None]:
    """Says what the disk says, as an error of this room."""
    try:
        yield
    except OSError as error:
        raise NotWritten(
            f"nothing was kept, since the disk does not take it ({shown_error(error)}); make room or allow writing in "
            f"{folder}, then try again"
        ) from error
