"""What a vote and a text have to be, so that they are kept."""

from __future__ import annotations

from collections.abc import Mapping

from .names import NotThere, TasteError
from .records import CHOICES, Candidate, Vote, answer_of, is_number, is_text


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
