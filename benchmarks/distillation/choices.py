"""The one choice of the study, made on dev: the learning rate whose students draw most nearly what their pairs draw."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .plan import REGIMES, Plan, units


def rate_distances(plan: Plan, rows: Mapping[str, Mapping[str, Any]]) -> dict[float, float]:
    """By rate the distance after the last step, in the mean over the regimes; of rates that are counted in all."""
    found: dict[float, list[float]] = {rate: [] for rate in plan.rates}
    for unit in units(plan, None):
        if unit.student and unit.name in rows:
            found[unit.student.rate].append(rows[unit.name]["points"][str(plan.steps)]["dev"]["distance"])
    return {rate: sum(each) / len(each) for rate, each in found.items() if len(each) == len(REGIMES)}


def chosen_rate(plan: Plan, rows: Mapping[str, Mapping[str, Any]]) -> float | None:
    """None while something is not counted yet."""
    distances = rate_distances(plan, rows)
    return min(distances, key=lambda rate: distances[rate]) if len(distances) == len(plan.rates) else None
