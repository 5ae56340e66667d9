"""What the search of settings saw on dev: every rate and β of a method, on which the choice of defaults can lean."""

from __future__ import annotations

from .choices import searched_points
from .measured import Measured
from .plan import WITH_BETA, Entry, Training, search
from .tables import Table
from .titles import method_title


def search_table(measured: Measured, regime: str) -> Table:
    """A line for each setting that was tried in a regime with a search of its own, of runs that were not stopped early:
    the means over all points that it was tried at, and the mean gate."""
    table = [["method", "learning rate", "β", "% right", "taste", "mean gate"]]
    for entry in measured.settings:
        if entry.regime == regime and not entry.method.matched and entry.method.pairs == measured.plan.pairs:
            table += rows_of(measured, entry)
    return table


def rows_of(measured: Measured, entry: Entry) -> Table:
    rows = []
    for settings in search(measured.plan, entry.method):
        training = Training(entry.regime, entry.method, settings, 0)
        points = searched_points(entry.method, measured.plan)
        found = [point for each in points if (point := measured.records.mean([training], *each))]
        if settings.stop < settings.steps or len(found) < len(points):
            continue
        has_beta = entry.method.objective in WITH_BETA
        gate = measured.records.rows[f"train {training.run}"]["metrics"]["mean_gate"] if has_beta else None
        right, taste = (sum(getattr(each, name) for each in found) / len(found) for name in ("right", "taste"))
        rows.append(
            [
                method_title(entry.method),
                f"{settings.rate:g}",
                f"{settings.beta:g}" if has_beta else "",
                f"{100 * right:.1f}",
                f"{taste:.3f}",
                f"{gate:.3f}" if gate is not None else "",
            ]
        )
    return rows
