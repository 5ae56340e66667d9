"""Finished rows as Markdown: a table, and below it the sentences that the pack or ComfyUI said."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterable
from datetime import date

import torch

KINDS = ("two_models", "lora_pair")


def report(rows: Iterable[dict]) -> str:
    """Of rows as they are in the file of results; errors are the larger of both forms."""
    rows = list(rows)
    versions = sorted({row["comfyui"] for row in rows})
    notes: dict[str, int] = {}
    lines = [_line(row, notes) for row in rows]
    return "\n".join(
        [
            f"`python -m benchmarks.architectures`, {date.today()}, {platform.machine()}, {os.cpu_count()} cores, "
            f"no GPU, torch {torch.__version__}, ComfyUI {', '.join(versions)}.",
            "",
            "| what | two models | LoRA pair | CFG's distance | form |",
            "| --- | --- | --- | --- | --- |",
            *lines,
            "",
            *(f"{number}. {sentence}" for sentence, number in notes.items()),
        ]
    )


def _line(row: dict, notes: dict[str, int]) -> str:
    if "failed" in row:
        return f"| {row['name']} | not run {_note(row['failed'], notes)} | | | |"
    cells = [
        " ".join([_errors(row[kind], notes), *(_note(line, notes) for line in row["said"][kind])]) for kind in KINDS
    ]
    distance = "" if row["distance"] == float("inf") else f"{row['distance']:.2g}"
    forms = [form for form in ("proxy", "exact") if any(_is_number(row[kind].get(form)) for kind in KINDS)]
    return f"| {row['name']} | {' | '.join(cells)} | {distance} | {', '.join(forms)} |"


def _is_number(value: object) -> bool:
    return isinstance(value, float)


def _errors(by_form: dict[str, float | str], notes: dict[str, int]) -> str:
    """The largest error, and the numbers of what was refused."""
    numbers = [value for value in by_form.values() if not isinstance(value, str)]
    found = [f"{max(numbers):.0e}".replace("e-0", "e-").replace("0e+00", "0")] if numbers else []
    refusals = dict.fromkeys(_note(value, notes) for value in by_form.values() if isinstance(value, str))
    return " ".join([*found, *refusals])


def _note(sentence: str, notes: dict[str, int]) -> str:
    name, _, words = sentence.partition(": ")
    said = words if name in ("ValueError", "NoMixture", "InexpressibleError", "RuntimeError") else sentence
    return f"({notes.setdefault(said, len(notes) + 1)})"
