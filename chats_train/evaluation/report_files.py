"""The report of an evaluation: its files, and the lines that the command prints."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from chats.files import write_text

from ..sampling.probe import ProbeResult
from .benchmark import Benchmark
from .conditions import Condition
from .drawing import Picture, picture_row
from .negatives import (
    NEGATIVES_FILE,
    Comparison,
    negatives_table,
    negatives_verdicts,
    write_negatives,
)
from .plots import draw_alpha_curve, draw_grid
from .probing import PROBE_FILE, probe_table, probe_verdicts
from .report import (
    FAIRNESS,
    Breakdown,
    Figures,
    Scores,
    as_markdown,
    as_text,
    compute_figures,
    group_table,
    overall_table,
)
from .scoring import read_parts

RESULTS_FILE, SUMMARY_FILE, REPORT_FILE = "results.jsonl", "summary.json", "report.md"
GRID_FILE, CURVE_FILE = "grid.png", "alpha.png"
# Scores by scorer, then by picture key.
ScoresByKey = Mapping[str, Mapping[str, float]]
Kept = TypeVar("Kept")


def write_report(
    folder: Path,
    header: Sequence[str],
    pictures: Sequence[Picture],
    scores: ScoresByKey,
    comparisons: Sequence[Comparison],
    probed: Sequence[ProbeResult],
    breakdowns: Mapping[str, Breakdown],
) -> list[str]:
    """Writes every file but the probe's, and returns the report as text."""
    write_text(folder / RESULTS_FILE, "".join(_rows(folder, pictures, scores)))
    values = by_condition(pictures, scores)
    groups = {picture.prompt.text: picture.prompt.group for picture in pictures}
    figures = compute_figures(values, groups, breakdowns)
    write_negatives(folder, comparisons)
    write_text(
        folder / SUMMARY_FILE, json.dumps([each.as_json() for each in figures], ensure_ascii=False, indent=1) + "\n"
    )
    row_prompts = draw_grid(pictures, folder / GRID_FILE)
    files = [RESULTS_FILE, SUMMARY_FILE, NEGATIVES_FILE, REPORT_FILE, GRID_FILE]
    if figures and draw_alpha_curve(figures, folder / CURVE_FILE):
        files.append(CURVE_FILE)
    if probed:
        files.append(PROBE_FILE)
    report = _markdown(header, figures, comparisons, probed, row_prompts, CURVE_FILE in files)
    write_text(folder / REPORT_FILE, "\n".join(report) + "\n")
    return [*_text(header, figures, comparisons, probed), f"{folder}: {', '.join(files)}"]


def probe_text(probed: Sequence[ProbeResult]) -> list[str]:
    """The probe's lines of the report, none without a probe."""
    if not probed:
        return []
    return ["the proxy prompt", *as_text(probe_table(probed)), *(f"  {line}" for line in probe_verdicts(probed))]


def by_condition(pictures: Sequence[Picture], scores: ScoresByKey) -> Scores:
    """Each scorer's values by condition and picture, from its scores by key."""
    return {scorer: _arranged(pictures, by_key) for scorer, by_key in scores.items()}


def break_down(scorer: Benchmark, pictures: Sequence[Picture], folder: Path) -> Breakdown:
    """The categories of a benchmark, from what it has kept in scores.jsonl."""
    parts = _arranged(pictures, read_parts(scorer, pictures, folder))
    return Breakdown(parts, scorer.categories, scorer.mean_of_categories)


def _arranged(pictures: Sequence[Picture], by_key: Mapping[str, Kept]) -> dict[Condition, dict[tuple[str, int], Kept]]:
    """What is known of pictures by condition, prompt and seed, from the same by key."""
    found: dict[Condition, dict[tuple[str, int], Kept]] = {}
    for picture in pictures:
        if picture.key in by_key:
            values = found.setdefault(picture.condition, {})
            values[picture.prompt.text, picture.seed] = by_key[picture.key]
    return found


def _rows(folder: Path, pictures: Sequence[Picture], scores: ScoresByKey) -> list[str]:
    """The lines of results.jsonl."""
    lines = []
    for picture in pictures:
        own = {scorer: by_key[picture.key] for scorer, by_key in scores.items() if picture.key in by_key}
        lines.append(json.dumps({**picture_row(picture, folder), "scores": own}, ensure_ascii=False) + "\n")
    return lines


def _text(
    header: Sequence[str],
    figures: Sequence[Figures],
    comparisons: Sequence[Comparison],
    probed: Sequence[ProbeResult],
) -> list[str]:
    text = [*header, *probe_text(probed)]
    for title, rows in _tables(figures):
        text += [title, *as_text(rows)]
    if comparisons:
        verdicts = (f"  {line}" for line in negatives_verdicts(comparisons))
        text += ["which negative", *as_text(negatives_table(comparisons)), *verdicts]
    return [
        *text,
        FAIRNESS if figures else "nothing was scored: name a scorer, such as `--scorer pickscore=FOLDER_OR_HUB_ID`",
    ]


def _markdown(
    header: Sequence[str],
    figures: Sequence[Figures],
    comparisons: Sequence[Comparison],
    probed: Sequence[ProbeResult],
    row_prompts: Sequence[str],
    curve: bool,
) -> list[str]:
    """The lines of report.md."""
    lines = ["# Evaluation", "", *(f"- {line}" for line in header), ""]
    for title, rows in _tables(figures):
        lines += [f"## {title}", "", *as_markdown(rows), ""]
    lines += [FAIRNESS, ""] if figures else ["Nothing was scored.", ""]
    if comparisons:
        lines += ["## Which negative", "", *as_markdown(negatives_table(comparisons)), ""]
        lines += [*(f"- {line}" for line in negatives_verdicts(comparisons)), ""]
    if probed:
        lines += ["## The proxy prompt", "", *as_markdown(probe_table(probed)), ""]
        lines += [*(f"- {line}" for line in probe_verdicts(probed)), ""]
    if curve:
        lines += [f"![scores over α]({CURVE_FILE})", ""]
    return [
        *lines,
        f"![pictures]({GRID_FILE})",
        "",
        "Rows:",
        "",
        *(f"{number}. {text}" for number, text in enumerate(row_prompts, 1)),
    ]


def _tables(figures: Sequence[Figures]) -> list[tuple[str, list[list[str]]]]:
    """Each scorer's table, and one by group where there are several groups, with titles."""
    found = []
    for scorer in dict.fromkeys(each.scorer for each in figures):
        own = [each for each in figures if each.scorer == scorer]
        found.append((scorer, overall_table(own)))
        if len(own[0].groups) > 1:
            found.append((f"{scorer} by group", group_table(own)))
    return found
