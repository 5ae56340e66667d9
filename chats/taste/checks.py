"""What a vote and a text have to be, so that they are kept."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

from .names import Conflict, NotThere, TasteError
from .records import CHOICES, MOST_SECONDS, Candidate, Pair, Vote, answer_of, is_number, is_text
from .tally import Tally


def check_vote(vote: Vote, known: Mapping[str, Candidate]) -> None:
    """Refuses what can be no answer to a pair of the candidates.

    Raises:
        NotThere: for a picture that is no candidate.
        TasteError: for all else.
    """
    known_time = vote.seconds is None or (is_number(vote.seconds) and vote.seconds >= 0)
    if answer_of(vote.row()) is None or not vote.rater or not known_time:
        raise TasteError(
            "badVote",
            "a vote has a `rating` of 16 hex digits, two different pictures, a `choice` of {choices}, and `seconds` "
            "that are a number from 0 on, or none",
            choices=", ".join(CHOICES),
        )
    for name in (vote.left, vote.right):
        if name not in known:
            raise NotThere("noCandidate", "the picture {picture} is no candidate of this data set", picture=name)
    if known[vote.left].prompt != known[vote.right].prompt:
        raise TasteError("twoPrompts", "the two pictures are for two prompts; a pair is of one")


def to_keep(votes: Iterable[Vote], known: Mapping[str, Candidate], tally: Tally) -> tuple[dict[str, Vote], list[bool]]:
    """Of some votes those that are new and count, by the rating's id; and of each whether it stands.

    Raises:
        NotThere, TasteError: from :func:`check_vote`.
        Conflict: where the id is another answer's.
    """
    new: dict[str, Vote] = {}
    answered: set[tuple[str, Pair, bool]] = set()
    stands = []
    for vote in votes:
        check_vote(vote, known)
        again = vote.repeat and vote.pair in tally.rater(vote.rater).first
        seconds = None if vote.seconds is None else round(min(vote.seconds, MOST_SECONDS), 3)
        vote = replace(vote, repeat=again, seconds=seconds)
        before = tally.found(vote.rating) or new.get(vote.rating)
        if before is not None and _answer(before) != _answer(vote):
            raise Conflict(
                "otherAnswer",
                "the rating {rating} is another answer's; make a new id for each",
                rating=vote.rating,
            )
        place = (vote.rater, vote.pair, vote.repeat)
        if before is None and place not in answered and tally.stands(vote):
            answered.add(place)
            new[vote.rating] = vote
        stands.append(vote.rating in new or vote.rating in tally.votes)
    return new, stands


def _answer(vote: Vote) -> tuple[str, ...]:
    return vote.left, vote.right, vote.choice, vote.rater


def check_text(text: str, setting: str, longest: int) -> None:
    """Refuses a text that is too long or cannot be written.

    Raises:
        TasteError: naming the setting.
    """
    if len(text) > longest:
        raise TasteError(
            "tooLong",
            "`{setting}` has {length} characters; at most {longest} are kept: shorten it",
            setting=setting,
            length=len(text),
            longest=longest,
        )
    if not is_text(text):
        raise TasteError(
            "halfCharacter", "`{setting}` holds half of a character (a lone surrogate); write it anew", setting=setting
        )
