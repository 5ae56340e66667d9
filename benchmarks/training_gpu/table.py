"""The rows of one or more runs as tables, one a family: times and memory, beside the authors' step of the same run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

BASELINES = ("authors", "authors, nothing offloaded")
Row = dict[str, Any]


def page(path: Path) -> str:
    """Markdown. Rows of several runs in one file are told apart by `lease`, the number of the time that a machine was
    had; a ratio to the authors' step is to that of the same one, where it was measured there."""
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    measured = [row for row in rows if "pair_seconds" in row]
    families = dict.fromkeys(row["setting"]["family"] for row in measured)
    return "\n\n".join(
        table(family, [row for row in measured if row["setting"]["family"] == family], rows) for family in families
    )


def table(family: str, measured: list[Row], rows: list[Row]) -> str:
    machines = ", ".join(dict.fromkeys(f"{row['device']}, torch {row['torch']}, {row['date']}" for row in measured))
    encoding = ", ".join(
        f"{row['encoding_seconds']:.2f}"
        for row in rows
        if "encoding_seconds" in row and row["setting"]["family"] == family
    )
    lines = [
        f"{family}: {machines}; {measured[0]['setting']['pixels']} px. Encoding, once: {encoding} s a pair.",
        "",
        "| step | run | s a pair | time to authors' | GB at most | memory to authors' | GB before a step "
        "| GB by `check`, beside activations | s of the first step |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in measured:
        says = row["check_says_bytes"]
        cells = [
            row["side"] + (" *" if row.get("before_mend") else ""),
            str(row.get("lease", 1)),
            f"{row['pair_seconds']:.2f}",
            ratios(row, measured, "pair_seconds"),
            gigabytes(row["peak_bytes"]),
            ratios(row, measured, "peak_bytes"),
            gigabytes(row["held_bytes"]),
            "" if says is None else gigabytes(says),
            f"{row['first_seconds']:.0f}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def ratios(row: Row, measured: list[Row], what: str) -> str:
    """To the authors' step, and to theirs with nothing offloaded where that was measured."""
    found = []
    for name in BASELINES:
        theirs = [each for each in measured if each["side"] == name]
        same = [each for each in theirs if each.get("lease") == row.get("lease")] or theirs
        if same:
            found.append(f"{row[what] / same[0][what]:.2f}")
    return " \\| ".join(found)


def gigabytes(count: float) -> str:
    return f"{count / 1e9:.1f}"
