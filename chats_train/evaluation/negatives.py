"""Which model is the better negative for the preferred one: the pair's dispreferred model, or the untouched base."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from chats.files import write_text
from chats.pair import Negative

from ..runs.negative_file import FILE, write_negative
from .conditions import Condition
from .report import Scores, with_error, without_nan
from .statistics import Estimate, paired_difference, sign_flip_p_value

NEGATIVES_FILE = "negatives.json"
# Of all comparisons under one scorer together.
SIGNIFICANCE = 0.05
NAMES: dict[Negative, str] = {"dispreferred": "the dispreferred model", "base": "the untouched base"}


@dataclass(frozen=True)
class Comparison:
    """One scorer's difference between CHATS with the dispreferred model and the base as the negative, from the same
    noise at the same guidance scale.

    Attributes:
        condition: of CHATS. At α = 0 the negative's model is all that differs; at another α its prompt differs too.
        difference: CHATS − base as the negative, so above 0 where the dispreferred model is better.
        p_value: of the paired sign-flip test over prompts, times the number of the scorer's comparisons (Bonferroni).
    """

    scorer: str
    condition: Condition
    difference: Estimate
    p_value: float

    @property
    def better(self) -> Negative | None:
        """The better negative, None where chance does as well."""
        if self.p_value > SIGNIFICANCE:
            return None
        return "dispreferred" if self.difference.mean > 0 else "base"


def compare_negatives(scores: Scores) -> list[Comparison]:
    """Every CHATS condition against the base as the negative; none at s = 0, where a negative has no weight."""
    found = []
    for scorer, by_condition in scores.items():
        couples = [
            (condition, values, by_condition.get(Condition("base_negative", condition.guidance_scale)))
            for condition, values in by_condition.items()
            if condition.models == "pair" and condition.guidance_scale > 0
        ]
        drawn = [(condition, values, base) for condition, values, base in couples if values and base]
        for condition, values, base in drawn:
            p_value = min(1.0, len(drawn) * sign_flip_p_value(values, base))
            found.append(Comparison(scorer, condition, paired_difference(values, base), p_value))
    return found


def negatives_table(comparisons: Sequence[Comparison]) -> list[list[str]]:
    """Rows of text: a head, and a row for each comparison."""
    rows = [["", "s", "dispreferred − base", "p", "better negative"]]
    for each in comparisons:
        rows.append(
            [
                f"{each.scorer}: {each.condition.method}",
                f"{each.condition.guidance_scale:g}",
                with_error(each.difference, sign="+"),
                f"{each.p_value:.2g}",
                NAMES[each.better] if each.better else "no difference",
            ]
        )
    return rows


def negatives_verdicts(comparisons: Sequence[Comparison]) -> list[str]:
    """A sentence for each scorer."""
    lines = []
    for scorer in dict.fromkeys(each.scorer for each in comparisons):
        own = [each for each in comparisons if each.scorer == scorer]
        wins = [each.better for each in own if each.better]
        if not wins:
            said = "no difference between the dispreferred model and the untouched base as the negative"
        elif len(set(wins)) == 2:
            said = "which negative is better depends on the settings"
        else:
            said = f"{NAMES[wins[0]]} is the better negative for this pair ({len(wins)} of {len(own)} comparisons)"
        lines.append(f"{scorer}: {said}")
    return lines


def better_negative(comparisons: Sequence[Comparison]) -> Negative | None:
    """The negative that is better in every comparison in which there is a difference; None where they disagree, or
    where there is none."""
    wins = {each.better for each in comparisons if each.better}
    return wins.pop() if len(wins) == 1 else None


def keep_verdict(output_dir: Path, weights_sha256: str, comparisons: Sequence[Comparison]) -> list[str]:
    """Keeps the better negative, or that none was clear, for the pair's next export; what there is to say of it.
    Without a comparison all stays as it is."""
    if not comparisons:
        return []
    better = better_negative(comparisons)
    write_negative(output_dir, weights_sha256, better)
    if better is None:
        return []
    return [f"{output_dir / FILE}: {NAMES[better]} is the better negative; `export` writes that into the pair's files"]


def write_negatives(folder: Path, comparisons: Sequence[Comparison]) -> None:
    """Writes negatives.json."""
    rows = [{**asdict(each), "better": each.better} for each in comparisons]
    write_text(folder / NEGATIVES_FILE, json.dumps(without_nan(rows), ensure_ascii=False, indent=1) + "\n")
