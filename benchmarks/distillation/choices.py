"""The one choice of the study, made on dev: the learning rate whose students draw most nearly what their pairs draw."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .plan import Plan, units


def chosen_rate(plan: Plan, rows: Mapping[str, Mapping[str, Any]]) -> float | None:
    """By the distance of the last step, in the mean over the regimes; None while something is not counted yet."""
    searched = [unit for unit in units(plan, None) if unit.kind == "student"]
    if any(unit.name not in rows for unit in searched):
        return None
    sums = dict.fromkeys(plan.rates, 0.0)
    for unit in searched:
        assert unit.student is not None
        sums[unit.student.rate] += rows[unit.name]["points"][str(plan.steps)]["dev"]["distance"]
    return min(sums, key=lambda rate: sums[rate])
