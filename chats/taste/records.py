"""One line of each log: a candidate, a vote, an undo; foreign lines are told from them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from .names import is_id

SIDES = ("left", "right")
CHOICES = (*SIDES, "tie", "skip")
# How the raters' names begin that are models.
SCORER = "scorer:"
# Longer than anyone looks at a pair: its window was left open.
MOST_SECONDS = 3600.0

# Two pictures of one prompt, in the order of their ids.
Pair = tuple[str, str]


def pair_of(one: str, other: str) -> Pair:
    return (one, other) if one < other else (other, one)


@dataclass(frozen=True)
class Candidate:
    """One picture that was drawn for a prompt; ``seeds`` and ``models`` as the graph states them, ``time`` in seconds
    since 1970."""

    id: str
    prompt: str
    seeds: tuple[int, ...] = ()
    models: tuple[str, ...] = ()
    width: int = 0
    height: int = 0
    time: float = 0.0

    def row(self) -> dict[str, Any]:
        return {**vars(self), "seeds": list(self.seeds), "models": list(self.models)}


@dataclass(frozen=True)
class Vote:
    """One answer to a pair as it was shown. ``rating`` is its id, ``repeat`` says that the rater had answered the pair
    before; ``time`` in seconds since 1970, ``seconds`` from the showing to the answer."""

    rating: str
    left: str
    right: str
    choice: str
    rater: str
    time: float = 0.0
    seconds: float | None = None
    repeat: bool = False

    @property
    def pair(self) -> Pair:
        return pair_of(self.left, self.right)

    @property
    def chosen(self) -> str | None:
        """The id of the picture that is liked better; None for a tie and a skip."""
        return {"left": self.left, "right": self.right}.get(self.choice)

    @property
    def by_scorer(self) -> bool:
        return self.rater.startswith(SCORER)

    def row(self) -> dict[str, Any]:
        return dict(vars(self))


@dataclass(frozen=True)
class Undo:
    """A vote that its rater took back."""

    rating: str
    rater: str
    time: float = 0.0

    def row(self) -> dict[str, Any]:
        return {"undo": self.rating, "rater": self.rater, "time": self.time}


def candidate_of(row: dict[str, Any]) -> Candidate | None:
    """The candidate of a line; None where the line is no candidate's."""
    name, prompt = row.get("id"), row.get("prompt")
    if not is_id(name) or not isinstance(prompt, str) or not prompt.strip() or not is_text(prompt):
        return None
    seeds, models = _list(row.get("seeds")), _list(row.get("models"))
    return Candidate(
        str(name),
        prompt,
        tuple(seed for seed in seeds if is_number(seed)),
        tuple(model for model in models if isinstance(model, str)),
        int(_number(row.get("width"))),
        int(_number(row.get("height"))),
        _number(row.get("time")),
    )


def answer_of(row: dict[str, Any]) -> Vote | Undo | None:
    """The vote or the undo of a line; None where the line is neither."""
    rater, time = row.get("rater"), _number(row.get("time"))
    if not isinstance(rater, str):
        return None
    if "undo" in row:
        return Undo(row["undo"], rater, time) if is_id(row["undo"]) else None
    rating, left, right, choice = (row.get(key) for key in ("rating", "left", "right", "choice"))
    if not (is_id(rating) and is_id(left) and is_id(right)) or left == right or choice not in CHOICES:
        return None
    seconds = row.get("seconds")
    return Vote(
        str(rating),
        str(left),
        str(right),
        str(choice),
        rater,
        time,
        _number(seconds) if is_number(seconds) else None,
        row.get("repeat") is True,
    )


def is_text(value: str) -> bool:
    """Whether it can be written: JSON's escapes can spell halves of characters."""
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def is_number(value: object) -> bool:
    """Whether it is a number of no more than 64 bits; JSON knows others."""
    if isinstance(value, int):
        return not isinstance(value, bool) and value.bit_length() <= 64
    return isinstance(value, float) and math.isfinite(value)


def _number(value: Any) -> float:
    return float(value) if is_number(value) else 0.0


def _list(value: object) -> list[Any]:
    return value if isinstance(value, list) else []
