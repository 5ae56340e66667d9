"""DPG-Bench (Hu et al. 2024, arXiv 2403.05135): the questions about a prompt, and what their answers are worth.

The table of questions and the rules are those of its published scorer (github.com/TencentQQGYLab/ELLA,
dpg_bench/compute_dpg_bench.py at 3c228f1). Departures: the table's first question counts (there it is passed over), a
prompt whose question depends on one that is not there is scored without that dependency (there the whole prompt drops
out), and a category's score is over the answers about all pictures (there over those about a prompt's last picture).
"""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ...support.errors import UserError
from ..benchmark import Parts

# The five of its table; a table of questions may have others, which then follow.
CATEGORIES: tuple[str, ...] = ("global", "entity", "attribute", "relation", "other")
COLUMNS = ("item_id", "proposition_id", "dependency", "tuple", "question_natural_language")
NO_PARENT = 0


@dataclass(frozen=True)
class Question:
    """A question to be answered with yes or no.

    Attributes:
        number: among those of its prompt.
        parents: the questions without whose yes this one's counts for nothing.
        category: one of the coarse ones, such as `attribute`.
    """

    number: int
    parents: tuple[int, ...]
    category: str
    text: str


def read_questions(path: Path) -> dict[str, tuple[Question, ...]]:
    """The questions of each prompt, by `item_id`, in the table's order.

    Raises:
        UserError: when the file is no such table.
    """
    found: dict[str, dict[int, Question]] = {}
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file)
            lacking = [name for name in COLUMNS if name not in (reader.fieldnames or ())]
            if lacking:
                raise UserError(
                    f"`--scorer` dpg's questions are {path}, which has no column {lacking[0]}; give dpg_bench.csv"
                )
            for row in reader:
                question = _question(row, f"{path}, line {reader.line_num}")
                found.setdefault(row["item_id"].strip(), {})[question.number] = question
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(
            f"`--scorer` dpg's questions are {path}, which cannot be read ({error}); give dpg_bench.csv"
        ) from error
    if not found:
        raise UserError(f"`--scorer` dpg's questions are {path}, which has none; give dpg_bench.csv")
    return {item: tuple(questions.values()) for item, questions in found.items()}


def _question(row: Mapping[str, str | None], where: str) -> Question:
    try:
        values = {name: row[name] or "" for name in COLUMNS}
        numbers = [int(each) for each in values["dependency"].split(",")]
        parents = tuple(number for number in numbers if number != NO_PARENT)
        # Such as `attribute - color (truck, red)`.
        category = values["tuple"].split("(")[0].split("-")[0].strip()
        text = values["question_natural_language"].strip()
        if not (category and text and values["item_id"].strip()):
            raise ValueError("an empty cell")
        return Question(int(values["proposition_id"]), parents, category, text)
    except ValueError as error:
        raise UserError(
            f"`--scorer` dpg's questions: {where}, cannot be read ({error}); give dpg_bench.csv as it is published"
        ) from error


def lost_parents(questions: Sequence[Question]) -> int:
    """How many dependencies name a question that is not there."""
    numbers = {question.number for question in questions}
    return sum(parent not in numbers for question in questions for parent in question.parents)


def score_answers(questions: Sequence[Question], yes: Mapping[int, bool]) -> float:
    """A picture's score: the share of questions with yes whose parents count. They are gone through in order, so that
    what does not count takes along what depends on it.

    Args:
        yes: each question's answer, by its number.
    """
    counts = dict(yes)
    for question in questions:
        if not all(counts.get(parent, True) for parent in question.parents):
            counts[question.number] = False
    return sum(counts.values()) / len(counts)


def category_parts(questions: Sequence[Question], yes: Mapping[int, bool]) -> Parts:
    """Of each category how many questions were answered with yes, and how many there are; here every yes counts, as in
    the published scorer."""
    found: dict[str, tuple[float, float]] = {}
    for question in questions:
        met, asked = found.get(question.category, (0.0, 0.0))
        found[question.category] = met + float(yes[question.number]), asked + 1.0
    return found
