"""The plot of the study: how right and taste differ from the pair's, by the steps of the distillation."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..miniature.measured import Quantity
from .measured import Measured, Row
from .plan import REGIMES

TITLES: dict[Quantity, str] = {"right": "% right, less the pair's", "taste": "taste, less the pair's"}


def draw(results: Mapping[str, Any], path: Path) -> None:
    """A column a regime; test, with standard errors of the paired differences, and the base as a dashed line."""
    from matplotlib.figure import Figure

    measured = Measured(results)
    figure = Figure(figsize=(12, 8), layout="constrained")
    places = figure.subplots(2, len(REGIMES), sharex=True, sharey="row")
    for column, regime in enumerate(REGIMES):
        for axes, (quantity, title) in zip(places[:, column], TITLES.items(), strict=True):
            draw_panel(axes, measured, regime, quantity)
            axes.set(xscale="log", title=f"{regime}: {title}")
            axes.set_xticks(measured.plan.marks, [str(step) for step in measured.plan.marks])
            axes.minorticks_off()
            axes.grid(alpha=0.3)
        places[-1, column].set_xlabel("steps")
    places[-1, -1].legend(fontsize="small", framealpha=0.5)
    figure.savefig(path, dpi=80)


def draw_panel(axes: Any, measured: Measured, regime: str, quantity: Quantity) -> None:
    curves: dict[str, list[Row]] = defaultdict(list)
    for row in measured.students(regime):
        curves[row.title.rpartition(", ")[0]].append(row)
    pair, factor = measured.pair(regime), 100 if quantity == "right" else 1
    for number, (title, rows) in enumerate(curves.items()):
        found = [measured.difference(row, pair, quantity) for row in rows]
        axes.errorbar(
            # Side by side, where they would hide each other.
            [int(row.point) * (1 + 0.015 * number) for row in rows],
            [factor * each.mean for each in found],
            yerr=[factor * each.standard_error for each in found],
            marker=".",
            capsize=2,
            color=f"C{number}",
            label=title,
        )
    base = factor * measured.difference(measured.base(regime), pair, quantity).mean
    axes.axhline(0, color="black", linewidth=1)
    axes.axhline(base, color="black", linestyle="--", label="base, CFG")
