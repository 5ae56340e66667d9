"""A table's cells: our figure with its error, the paper's, their difference, and why one of ours is missing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ..statistics import Estimate
from .layout import Column, Layout, Method
from .paper import FIGURES, MODELS

# Ours for a method and a column, in the scorer's own unit; or why there is none.
Ours = Callable[[Method, Column], Estimate | str]


@dataclass(frozen=True)
class Cell:
    """One figure of a table, in the paper's unit; ``missing`` says why ``ours`` is None."""

    ours: Estimate | None
    paper: float | None
    missing: str = ""

    @property
    def difference(self) -> float | None:
        """Ours − the paper's; its error is ours, since the paper states none."""
        return None if self.ours is None or self.paper is None else self.ours.mean - self.paper


@dataclass(frozen=True)
class Row:
    """One method on one model; ``is_ours`` where the model is the base that is evaluated here."""

    model: str
    method: str
    cells: tuple[Cell, ...]
    is_ours: bool


@dataclass(frozen=True)
class Table:
    """A table with what there is to say of it."""

    layout: Layout
    rows: tuple[Row, ...]
    notes: tuple[str, ...]


def make_table(layout: Layout, base: str, ours: Ours, notes: tuple[str, ...]) -> Table:
    """The paper's rows, ours among them: at their place where the base is one of the paper's models, else first.

    Args:
        base: one of :data:`.paper.MODELS`, or what to call another base.
    """
    models = list(layout.models)
    if base not in models:
        # In the order of all of the paper's models; another base comes first.
        place = [model for model in MODELS if model in models or model == base].index(base) if base in MODELS else 0
        models.insert(place, base)
    rows = tuple(_row(layout, model, method, ours, model == base) for model in models for method in layout.methods)
    missing = dict.fromkeys(cell.missing for row in rows for cell in row.cells if cell.missing)
    return Table(layout, rows, (*notes, *(f"empty: {reason}" for reason in missing)))


def _row(layout: Layout, model: str, method: Method, ours: Ours, is_ours: bool) -> Row:
    cells = []
    for column in layout.columns:
        paper = FIGURES.get((model, method.same_as or method.title, column.quantity))
        found = ours(method, column) if is_ours else None
        if isinstance(found, Estimate):
            cells.append(Cell(_scaled(found, column.factor), paper))
        else:
            cells.append(Cell(None, paper, found or ""))
    return Row(model, method.title, tuple(cells), is_ours)


def _scaled(found: Estimate, factor: float) -> Estimate:
    return Estimate(factor * found.mean, factor * found.standard_error, found.prompts, found.pictures)
