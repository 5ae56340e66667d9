"""The miniature's plot."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from chats_train.evaluation.statistics import estimate

from .report import ALPHA, TITLES, Point, best_point, dev_share, shares, title, values


def draw(results: Mapping[str, Any], path: Path) -> None:
    """Three panels: dev over s for each method, α = 0 and both forms over (1+α)s, and test over the number of pairs."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(16, 4.6), layout="constrained")
    sweep, forms, sizes = figure.subplots(1, 3)
    rows = {training["row"]: training["method"] for training in results["trainings"]}
    largest = max(method["pairs"] for method in rows.values())
    main = [row for row, method in rows.items() if row == "base" or is_plain(method, largest)]
    for number, row in enumerate(main):
        condition = best_point(results, row).condition
        curve = shares([each["dev"][condition] for each in results["trainings"] if each["row"] == row])
        sweep.plot(
            list(curve),
            [100 * share for share in curve.values()],
            marker="o",
            markersize=3,
            color=f"C{number}",
            label=title(results, row),
        )
    sweep.set(xscale="log", xlabel="s", ylabel="% right", title="guidance, each method's best condition (dev)")
    pair = max(
        (row for row in main if rows[row]["objective"] == "chats"),
        key=lambda row: dev_share(results, best_point(results, row)),
    )
    for condition, label, factor in (
        ("alpha0", "α = 0", 1),
        ("proxy", f"α = {ALPHA}, proxy", 1 + ALPHA),
        ("exact", f"α = {ALPHA}, exact", 1 + ALPHA),
    ):
        curve = shares([each["dev"][condition] for each in results["trainings"] if each["row"] == pair])
        forms.plot(
            [factor * scale for scale in curve],
            [100 * share for share in curve.values()],
            marker="o",
            markersize=3,
            label=label,
        )
    forms.set(xscale="log", xlabel="(1+α)s", title=f"{title(results, pair)} (dev)")
    for objective in ("diffusion_dpo", "chats"):
        beta = rows[pair]["beta"] if objective == "chats" else 100.0
        points = {
            method["pairs"]: best_point(results, row)
            for row, method in rows.items()
            if (method["objective"], method["beta"]) == (objective, beta) and is_plain(method, method["pairs"])
        }
        draw_sizes(sizes, results, points, TITLES[objective])
    sizes.set(xscale="log", xlabel="pairs", title="data (test, ± one standard error)")
    ticks = [0.5, 1, 2, 4, 8, 16, 24]
    for axes, marks in (
        (sweep, ticks),
        (forms, ticks),
        (sizes, sorted({method["pairs"] for method in rows.values() if method["pairs"]})),
    ):
        axes.set_xticks(marks, [f"{mark:g}" for mark in marks])
        axes.minorticks_off()
        axes.legend(fontsize="x-small")
        axes.grid(alpha=0.3)
    figure.savefig(path, dpi=90)


def is_plain(method: Mapping[str, Any], pairs: int) -> bool:
    """Whether a row is of whole models on so many pairs, by an objective of the trainer's own."""
    return method["objective"] in TITLES and (method["training_method"], method["pairs"]) == ("full", pairs)


def draw_sizes(axes: Any, results: Mapping[str, Any], points: Mapping[int, Point], label: str) -> None:
    counts = sorted(points)
    found = [estimate(values(results, points[count])) for count in counts]
    means, errors = ([100 * getattr(each, name) for each in found] for name in ("mean", "standard_error"))
    axes.errorbar(counts, means, yerr=errors, marker="o", capsize=3, label=label)
