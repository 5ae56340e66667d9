"""A table's files: Markdown as the paper arranges it, CSV with a line for each figure, and a picture."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from chats.files import replacing, write_text

from ..report import NO_FIGURE, as_markdown, as_text
from .cells import Row, Table
from .layout import Column
from .paper import CHATS, STANDARD

CSV_COLUMNS = (
    "table", "model", "method", "column", "ours", "standard_error", "prompts", "pictures", "paper", "difference",
    "missing",
)  # fmt: skip


def write_table(folder: Path, table: Table) -> tuple[list[str], list[Path]]:
    """Writes `table-<name>.md`, `.csv` and `.png`.

    Returns:
        the table as lines of text, and the files.
    """
    stem = table.layout.name if table.layout.name.startswith("figure") else f"table-{table.layout.name}"
    paths = [folder / f"{stem}.{suffix}" for suffix in ("md", "csv", "png")]
    title = f"{_heading(table)}. {table.layout.title}"
    rows = table_rows(table)
    lines = [f"# {title}", "", *as_markdown(rows), "", *(f"- {note}" for note in table.notes), ""]
    write_text(paths[0], "\n".join([*lines, f"![{title}]({paths[2].name})"]) + "\n")
    write_text(paths[1], csv_text(table))
    draw_table(table, paths[2])
    return [title, *as_text(rows), *(f"  {note}" for note in table.notes)], paths


def table_rows(table: Table) -> list[list[str]]:
    """Rows of text: of each method our figures, the paper's, and the difference where there are both."""
    rows = [["Model", "Method", "", *(column.title for column in table.layout.columns)]]
    for row in table.rows:
        if row.is_ours:
            rows.append([row.model, row.method, "ours", *_cells(table, row, _ours)])
        if any(cell.paper is not None for cell in row.cells):
            rows.append([row.model, row.method, "paper", *_cells(table, row, _paper)])
        if any(cell.difference is not None for cell in row.cells):
            rows.append([row.model, row.method, "difference", *_cells(table, row, _difference)])
    return rows + _relative(table)


def csv_text(table: Table) -> str:
    """A line for each figure, at full precision."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(CSV_COLUMNS)
    for row in table.rows:
        for column, cell in zip(table.layout.columns, row.cells, strict=True):
            ours = cell.ours
            figures = (
                ("", "", "", "")
                if ours is None
                else (ours.mean, "" if math.isnan(ours.standard_error) else ours.standard_error, ours.prompts,
                      ours.pictures)
            )  # fmt: skip
            compared = ("" if value is None else value for value in (cell.paper, cell.difference))
            writer.writerow([table.layout.name, row.model, row.method, column.title, *figures, *compared, cell.missing])
    return text.getvalue()


def draw_table(table: Table, path: Path) -> None:
    """Writes a picture: a plot for each column, our figures with their errors and the paper's as crosses; over α where
    the rows are α."""
    from matplotlib.figure import Figure

    columns, over_alpha = table.layout.columns, table.layout.name.startswith("figure")
    across = min(4, len(columns))
    down = math.ceil(len(columns) / across)
    figure = Figure(figsize=(3.4 * across, 1 + 2.6 * down), layout="constrained")
    plots = figure.subplots(down, across, squeeze=False).flatten()
    for plot, number in zip(plots, range(len(columns)), strict=False):
        _draw_column(plot, table, number, over_alpha)
    for plot in plots[len(columns) :]:
        plot.set_axis_off()
    figure.legend(*plots[0].get_legend_handles_labels(), loc="outside lower center", ncols=2, fontsize="small")
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png", dpi=100)


def _draw_column(plot: Any, table: Table, number: int, over_alpha: bool) -> None:
    places = {
        id(row): (method.condition.alpha or 0.0 if over_alpha else place)
        for place, (row, method) in enumerate(_with_methods(table))
    }
    ours = [(places[id(row)], row.cells[number].ours) for row in table.rows if row.cells[number].ours is not None]
    paper = [(places[id(row)], row.cells[number].paper) for row in table.rows if row.cells[number].paper is not None]
    style = "o-" if over_alpha else "o"
    plot.errorbar(
        [place for place, _ in ours],
        [each.mean for _, each in ours if each is not None],
        yerr=[0.0 if math.isnan(each.standard_error) else each.standard_error for _, each in ours if each is not None],
        fmt=style,
        capsize=3,
        label="ours, ± one standard error",
    )
    plot.plot([place for place, _ in paper], [value for _, value in paper], "x", label="paper")
    plot.set_title(table.layout.columns[number].title, fontsize="small")
    if over_alpha:
        plot.set_xlabel("α")
    else:
        labels = [f"{row.model}\n{row.method}" for row in table.rows]
        plot.set_xticks(range(len(labels)), labels, rotation=60, ha="right", fontsize=6)


def _with_methods(table: Table) -> list[tuple[Row, Any]]:
    methods = table.layout.methods
    return [(row, methods[number % len(methods)]) for number, row in enumerate(table.rows)]


def _cells(table: Table, row: Row, text: Any) -> list[str]:
    return [text(column, cell) for column, cell in zip(table.layout.columns, row.cells, strict=True)]


def _ours(column: Column, cell: Any) -> str:
    return NO_FIGURE if cell.ours is None else _with_error(column, cell.ours.mean, cell.ours.standard_error)


def _paper(column: Column, cell: Any) -> str:
    return NO_FIGURE if cell.paper is None else f"{cell.paper:.{column.decimals}f}"


def _difference(column: Column, cell: Any) -> str:
    if cell.difference is None:
        return NO_FIGURE
    return _with_error(column, cell.difference, cell.ours.standard_error, sign="+")


def _with_error(column: Column, mean: float, error: float, sign: str = "") -> str:
    text = f"{mean:{sign}.{column.decimals}f}"
    return text if math.isnan(error) else f"{text} ± {error:.{column.decimals}f}"


def _relative(table: Table) -> list[list[str]]:
    """Of throughput what CHATS loses beside Standard, as the paper states it: the figures themselves are the card's."""
    if table.layout.name != "6":
        return []
    rows = []
    for model in dict.fromkeys(row.model for row in table.rows):
        own = {row.method: row for row in table.rows if row.model == model}
        for kind in ("ours", "paper"):
            texts = [
                _change(kind, own[STANDARD].cells[number], own[CHATS].cells[number])
                for number in range(len(table.layout.columns))
            ]
            if any(text != NO_FIGURE for text in texts):
                rows.append([model, f"{CHATS} − {STANDARD}", kind, *texts])
    return rows


def _change(kind: str, standard: Any, chats: Any) -> str:
    before, after = ((cell.paper if kind == "paper" else cell.ours and cell.ours.mean) for cell in (standard, chats))
    return NO_FIGURE if not before or after is None else f"{100 * (after / before - 1):+.0f}%"


def _heading(table: Table) -> str:
    name = table.layout.name
    return f"Figure {name.removeprefix('figure')}" if name.startswith("figure") else f"Table {name}"


def paths_text(paths: Sequence[Path]) -> str:
    """Files of one folder, in a line."""
    return f"{paths[0].parent}: {', '.join(path.name for path in paths)}"
