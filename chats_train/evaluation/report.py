"""What an evaluation says: figures for each condition as rows, and rows as text or Markdown."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from .benchmark import Parts
from .conditions import Condition
from .statistics import Estimate, PictureValues, estimate, mean_of, paired_difference, ratio, win_rate

# By scorer, then condition, then picture.
Scores = Mapping[str, Mapping[Condition, PictureValues]]

FAIRNESS = (
    "Every condition samples the same noise for the same prompt and seed, and every method gets the same list of "
    "guidance scales. "
    "(1+α)s is the weight of the negative: compare different α at equal (1+α)s. Errors are standard errors over "
    "prompts; differences "
    "and wins are picture by picture against the base at the same s, a tie being half a win."
)
NO_FIGURE = "–"


@dataclass(frozen=True)
class Breakdown:
    """What a benchmark says of its categories.

    Attributes:
        parts: by condition and picture.
        categories, mean_of_categories: as :class:`.benchmark.Benchmark` has them.
    """

    parts: Mapping[Condition, Mapping[tuple[str, int], Parts]]
    categories: tuple[str, ...]
    mean_of_categories: bool

    def groups(self, condition: Condition) -> dict[str, Estimate]:
        """Each category's share of what was asked for, in order; none for a category that was not asked for."""
        found = {}
        for category in self.categories:
            own = {key: parts[category] for key, parts in self.parts[condition].items() if category in parts}
            if own:
                found[category] = ratio(own)
        return found

    def overall(self, condition: Condition, values: PictureValues, of: Callable[[PictureValues], Estimate]) -> Estimate:
        """What ``of`` says of the pictures' values: of all at once, or the mean of what it says of each category's."""
        if not self.mean_of_categories:
            return of(values)
        parts = self.parts[condition]
        strata = [{key: value for key, value in values.items() if name in parts[key]} for name in self.categories]
        return mean_of([of(each) for each in strata if each])


@dataclass(frozen=True)
class Figures:
    """One scorer's figures of one condition: its mean, and against the base at the same guidance scale (None for the
    base itself). Groups are the prompts', or a benchmark's categories."""

    scorer: str
    condition: Condition
    mean: Estimate
    difference: Estimate | None
    wins: Estimate | None
    groups: dict[str, Estimate]

    def as_json(self) -> dict[str, Any]:
        """Plain values; what is not known (NaN) is null."""
        return without_nan({"name": self.condition.name, "total_scale": self.condition.total_scale, **asdict(self)})


def compute_figures(
    scores: Scores, groups: Mapping[str, str], breakdowns: Mapping[str, Breakdown] | None = None
) -> list[Figures]:
    """Figures of every scorer and condition.

    Args:
        scores: of every condition; a picture without a score is left out.
        groups: each prompt's group.
        breakdowns: of benchmarks, by scorer.
    """
    found = []
    for scorer, by_condition in scores.items():
        breakdown = (breakdowns or {}).get(scorer)
        for condition, values in by_condition.items():
            if values:
                base = by_condition.get(Condition("base", condition.guidance_scale), {})
                against = base if condition.models != "base" else {}
                found.append(_figures(scorer, condition, values, against, groups, breakdown))
    return found


def _figures(
    scorer: str,
    condition: Condition,
    values: PictureValues,
    base: PictureValues,
    groups: Mapping[str, str],
    breakdown: Breakdown | None,
) -> Figures:
    def of(one: Callable[[PictureValues], Estimate]) -> Estimate:
        return breakdown.overall(condition, values, one) if breakdown else one(values)

    if breakdown:
        by_group = breakdown.groups(condition)
    else:
        grouped: dict[str, dict[tuple[str, int], float]] = {}
        for (prompt, seed), value in values.items():
            grouped.setdefault(groups[prompt], {})[prompt, seed] = value
        by_group = {group: estimate(each) for group, each in grouped.items()}
    return Figures(
        scorer,
        condition,
        of(estimate),
        of(lambda each: paired_difference(each, base)) if base else None,
        of(lambda each: win_rate(each, base)) if base else None,
        by_group,
    )


def overall_table(figures: Sequence[Figures]) -> list[list[str]]:
    """Rows of one scorer: a head, and each condition."""
    rows = [["method", "s", "(1+α)s", "pictures", "mean", "− base", "wins (%)"]]
    for each in figures:
        condition = each.condition
        scales = [f"{condition.guidance_scale:g}", f"{condition.total_scale:g}"]
        compared = [with_error(each.difference, sign="+"), with_error(each.wins, factor=100, decimals=1)]
        rows.append([condition.method, *scales, str(each.mean.pictures), with_error(each.mean), *compared])
    return rows


def group_table(figures: Sequence[Figures]) -> list[list[str]]:
    """Rows of one scorer: a head, and each condition's mean in every group."""
    groups = list(dict.fromkeys(group for each in figures for group in each.groups))
    rows = [["method", "s", *groups]]
    for each in figures:
        rows.append(
            [
                each.condition.method,
                f"{each.condition.guidance_scale:g}",
                *(with_error(each.groups.get(group)) for group in groups),
            ]
        )
    return rows


def as_text(rows: Sequence[Sequence[str]]) -> list[str]:
    """Rows as lines in columns, the first flush left."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  "
        + "   ".join(
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    ]


def as_markdown(rows: Sequence[Sequence[str]]) -> list[str]:
    """Rows as a Markdown table."""
    escaped = [[cell.replace("|", "\\|") for cell in row] for row in rows]
    rule = ["---"] + ["---:"] * (len(rows[0]) - 1)
    return [f"| {' | '.join(row)} |" for row in [escaped[0], rule, *escaped[1:]]]


def with_error(figure: Estimate | None, factor: float = 1.0, decimals: int = 3, sign: str = "") -> str:
    """A mean and, where it is known, its standard error."""
    if figure is None:
        return NO_FIGURE
    mean = f"{factor * figure.mean:{sign}.{decimals}f}"
    return mean if math.isnan(figure.standard_error) else f"{mean} ± {factor * figure.standard_error:.{decimals}f}"


def without_nan(value: Any) -> Any:
    """Plain values with null for NaN, which JSON does not know."""
    if isinstance(value, dict):
        return {key: without_nan(each) for key, each in value.items()}
    if isinstance(value, list):
        return [without_nan(each) for each in value]
    return None if isinstance(value, float) and math.isnan(value) else value
