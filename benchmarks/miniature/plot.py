"""The miniature's plot: taste over right along the guidance scale, a panel a regime; α; the number of pairs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from .choices import base_trainings
from .measured import Measured, Row
from .plan import ALPHA, CHATS, DPO, PAIR, SUPERVISED, Condition, Method, Training
from .tables import finder, pair_counts
from .titles import CONDITIONS, method_title

CURVES: tuple[tuple[Method, Condition], ...] = (
    (SUPERVISED, "cfg"),
    (DPO, "cfg"),
    (PAIR, "alpha0"),
    (CHATS, "alpha0"),
    (CHATS, "proxy"),
    (CHATS, "base_negative"),
    (SUPERVISED, "base_negative"),
)
TITLES = {
    "makers": "makers",
    "own": "own",
    "strong": "strong base, makers' pairs",
    "low": "another taste, makers",
}


def draw(results: Mapping[str, Any], path: Path) -> None:
    """A panel a regime and one of α, of dev, where all scales were counted; one of fewer pairs if they were tried."""
    from matplotlib.figure import Figure

    measured = Measured(results)
    panels = [partial(draw_regime, regime=regime) for regime in measured.regimes]
    panels.append(draw_alpha)
    if len(pair_counts(measured)) > 1:
        panels.append(draw_sizes)
    columns = min(3, len(panels))
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(5.6 * columns, 5.6 * rows), layout="constrained")
    places = figure.subplots(rows, columns, squeeze=False).flatten()
    for axes, panel in zip(places, panels, strict=False):
        panel(axes, measured)
        axes.grid(alpha=0.3)
        # Beneath the panel, where it covers no curve.
        axes.legend(fontsize="x-small", ncols=2, loc="upper center", bbox_to_anchor=(0.5, -0.12), frameon=False)
    for axes in places[len(panels) :]:
        axes.set_visible(False)
    figure.savefig(path, dpi=80)


def draw_regime(axes: Any, measured: Measured, regime: str) -> None:
    """Right across, taste up; a line goes from little guidance to much, and a ring is what was chosen."""
    base = measured.rows[regime, "base", "cfg"]
    trainings = base_trainings(regime, range(measured.plan.seeds))
    draw_curve(axes, measured, base, trainings, measured.plan.base_scales, "base, CFG", "black")
    for number, (method, condition) in enumerate(CURVES):
        row = finder(measured, regime)(method, condition)
        if row:
            label = f"{method_title(method)}, {CONDITIONS[condition]}"
            draw_curve(axes, measured, row, row.trainings, scales_of(measured, row), label, f"C{number}")
    axes.set(xlabel="% right (dev)", ylabel="taste (dev)", title=TITLES[regime])


def draw_curve(
    axes: Any,
    measured: Measured,
    row: Row,
    trainings: Sequence[Training],
    scales: Sequence[float],
    label: str,
    colour: str,
) -> None:
    points = [measured.records.mean(trainings, row.condition, scale) for scale in scales]
    known = [point for point in points if point]
    places = [100 * point.right for point in known], [point.taste for point in known]
    axes.plot(*places, marker=".", color=colour, label=label)
    chosen = measured.records.mean(trainings, row.condition, row.scale)
    if chosen:
        axes.plot(100 * chosen.right, chosen.taste, marker="o", markersize=10, fillstyle="none", color=colour)


def scales_of(measured: Measured, row: Row) -> Sequence[float]:
    found: Sequence[float] = next(
        entry.scales for entry in measured.settings if (entry.regime, entry.method) == (row.regime, row.method)
    )
    return found


def draw_alpha(axes: Any, measured: Measured) -> None:
    """α = 0 and both forms over (1+α)s, where equal members would draw the same at α = 0 and in the exact form."""
    for condition, factor in (("alpha0", 1.0), ("proxy", 1 + ALPHA), ("exact", 1 + ALPHA)):
        row = finder(measured, "makers")(CHATS, condition)
        if row:
            scales = scales_of(measured, row)
            points = {scale: measured.records.mean(row.trainings, row.condition, scale) for scale in scales}
            for quantity, style in (("taste", "-"), ("right", "--")):
                axes.plot(
                    [factor * scale for scale, point in points.items() if point],
                    [getattr(point, quantity) for point in points.values() if point],
                    style,
                    marker=".",
                    color=f"C{('alpha0', 'proxy', 'exact').index(condition)}",
                    label=f"{CONDITIONS[row.condition]}: {quantity}",
                )
    axes.set(xscale="log", xlabel="(1+α)s", title="CHATS in makers (dev): taste and share right")
    axes.set_xticks([1, 2, 4, 8, 16, 24], ["1", "2", "4", "8", "16", "24"])
    axes.minorticks_off()


def draw_sizes(axes: Any, measured: Measured) -> None:
    """Test over the number of pairs, with standard errors."""
    find = finder(measured, "makers")
    counts = pair_counts(measured)
    curves: tuple[tuple[Method, Condition], ...] = ((CHATS, "proxy"), (DPO, "cfg"))
    for number, (method, condition) in enumerate(curves):
        found = {count: find(replace(method, pairs=count), condition) for count in counts}
        rows = {count: row for count, row in found.items() if row}
        for quantity, style in (("taste", "-"), ("right", "--")):
            values = [measured.estimate(row, quantity) for row in rows.values()]
            axes.errorbar(
                list(rows),
                [value.mean for value in values],
                yerr=[value.standard_error for value in values],
                linestyle=style,
                marker=".",
                capsize=3,
                color=f"C{number}",
                label=f"{method_title(method)}: {quantity}",
            )
    axes.set(xscale="log", xlabel="pairs", title="data, in makers (test): taste and share right")
    axes.set_xticks(counts, [str(count) for count in counts])
    axes.minorticks_off()
