"""Finished rows as a Markdown table."""

from __future__ import annotations

from collections.abc import Iterable


def table(rows: Iterable[dict]) -> str:
    """One line a row; an error is the larger of both forms."""
    lines = ["| what | two models | LoRA pair | from CFG | said |", "| --- | --- | --- | --- | --- |"]
    return "\n".join([*lines, *map(_line, rows)])


def _line(row: dict) -> str:
    if "failed" in row:
        return f"| {row['name']} | not run: {_cell(row['failed'])} | | | |"
    kinds = [_errors(row[kind]) for kind in ("two_models", "lora_pair")]
    said = "; ".join(map(_cell, row["said"]))
    distance = row["distance"]
    return f"| {row['name']} | {' | '.join(kinds)} | {distance:.2g} | {said} |"


def _errors(by_form: dict[str, float | str]) -> str:
    """The largest error, and what was refused."""
    if not by_form:
        return "–"
    numbers = [value for value in by_form.values() if not isinstance(value, str)]
    words = [f"{form}: {_cell(value)}" for form, value in by_form.items() if isinstance(value, str)]
    return "; ".join([*([f"{max(numbers):.0e}"] if numbers else []), *words])


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
