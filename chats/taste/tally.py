"""The votes in force: what each rater answered, and which picture of a pair is the better one by all of them."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from .records import Pair, Undo, Vote


@dataclass
class Rater:
    """One rater's votes in force.

    Attributes:
        votes: by the rating's id, oldest first.
        first: by pair, the vote that answers it.
        order: those pairs, for drawing lots.
        again: by pair, the vote on its repeat.
        counts: by picture, in how many pairs it was compared.
    """

    votes: dict[str, Vote] = field(default_factory=dict)
    first: dict[Pair, Vote] = field(default_factory=dict)
    order: list[Pair] = field(default_factory=list)
    again: dict[Pair, Vote] = field(default_factory=dict)
    counts: Counter[str] = field(default_factory=Counter)

    def last(self) -> Vote | None:
        return next(reversed(self.votes.values()), None)

    def agreement(self) -> tuple[int, int]:
        """How many repeats were answered as the first time, of how many; where one was skipped it says nothing."""
        both = [(self.first[pair], vote) for pair, vote in self.again.items() if pair in self.first]
        told = [(one, two) for one, two in both if "skip" not in (one.choice, two.choice)]
        return sum(one.chosen == two.chosen for one, two in told), len(told)


class Tally:
    """All votes in force, kept as they come in.

    Attributes:
        votes: by the rating's id.
        undone: votes that were taken back, by the rating's id: that id is used up.
        verdicts: by pair, the picture that is liked better; pairs without one are not in it.
        voted: pictures that somebody voted on, also where it was taken back.
    """

    def __init__(self) -> None:
        self.votes: dict[str, Vote] = {}
        self.undone: dict[str, Vote] = {}
        self.verdicts: dict[Pair, str] = {}
        self.voted: set[str] = set()
        self._raters: dict[str, Rater] = {}
        self._of_pair: dict[Pair, list[Vote]] = {}

    def rater(self, name: str) -> Rater:
        return self._raters.get(name) or Rater()

    def found(self, rating: str) -> Vote | None:
        """The vote of an id, also one that was taken back."""
        return self.votes.get(rating) or self.undone.get(rating)

    def stands(self, vote: Vote) -> bool:
        """Whether a vote would count: its id is new, and its rater has not answered the pair (or the repeat)."""
        rater = self.rater(vote.rater)
        answered = rater.again if vote.repeat and vote.pair in rater.first else rater.first
        return self.found(vote.rating) is None and vote.pair not in answered

    def add(self, vote: Vote) -> bool:
        """Counts a vote; False where it does not count, see :meth:`stands`."""
        if not self.stands(vote):
            return False
        rater = self._raters.setdefault(vote.rater, Rater())
        self.votes[vote.rating] = rater.votes[vote.rating] = vote
        if vote.pair in rater.first:
            rater.again[vote.pair] = vote
        else:
            rater.first[vote.pair] = vote
            rater.order.append(vote.pair)
            rater.counts.update(vote.pair)
        self._of_pair.setdefault(vote.pair, []).append(vote)
        self.voted.update(vote.pair)
        self._judge(vote.pair)
        return True

    def undo(self, undo: Undo) -> Vote | None:
        """Takes a vote back and gives it; None where its rater has none of that id in force."""
        vote = self.votes.get(undo.rating)
        if vote is None or vote.rater != undo.rater:
            return None
        rater = self._raters[vote.rater]
        del self.votes[vote.rating], rater.votes[vote.rating]
        self.undone[vote.rating] = vote
        if rater.again.get(vote.pair) == vote:
            del rater.again[vote.pair]
        elif vote.pair in rater.again:
            rater.first[vote.pair] = rater.again.pop(vote.pair)  # the answer to the repeat stays, as the only one
        else:
            del rater.first[vote.pair]
            rater.order.remove(vote.pair)
            rater.counts.subtract(vote.pair)
        self._of_pair[vote.pair].remove(vote)
        self._judge(vote.pair)
        return vote

    def _judge(self, pair: Pair) -> None:
        chosen = verdict(self._of_pair[pair])
        if chosen is None:
            self.verdicts.pop(pair, None)
        else:
            self.verdicts[pair] = chosen


def verdict(votes: list[Vote]) -> str | None:
    """The picture that more than half of a pair's votes chose; None where there is none.

    A tie counts as a vote for neither, a skip not at all. Scorers' votes count only where no person voted.
    """
    told = [vote for vote in votes if vote.choice != "skip"]
    told = [vote for vote in told if not vote.by_scorer] or told
    for picture in {vote.chosen for vote in told} - {None}:
        if 2 * sum(vote.chosen == picture for vote in told) > len(told):
            return picture
    return None
