"""The one choice of the study, made on dev: the learning rate whose student draws most nearly what its pair draws."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .plan import Plan, units


def rate_distances(plan: Plan, rows: Mapping[str, Mapping[str, Any]]) -> dict[float, float]:
    """By rate the distance after the last step, of those that are counted."""
    return {
        unit.student.rate: rows[unit.name]["points"][str(plan.steps)]["dev"]["distance"]
        for unit in units(plan, None)
        if unit.student and unit.name in rows
    }


def chosen_rate(plan: Plan, rows: Mapping[str, Mapping[str, Any]]) -> float | None:
    """None while something is not counted yet."""
    distances = rate_distances(plan, rows)
    return min(distances, key=lambda rate: distances[rate]) if len(distances) == len(plan.rates) else None
