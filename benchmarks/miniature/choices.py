"""What is chosen on dev, by one rule for every method: the most taste among what draws as often right as the base."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .plan import (
    ALPHA,
    BASE,
    WITH_BETA,
    Condition,
    Entry,
    Method,
    Plan,
    Settings,
    Training,
    search,
    settings_from,
)

# How much less often right than the base, at the base's best guidance, a choice may be on dev.
TOLERANCE = 0.02


@dataclass(frozen=True)
class Counted:
    """Of pictures: the share that is right, and the mean of the taste."""

    right: float
    taste: float


class Records:
    """What was measured so far, by unit and by training.

    Args:
        rows: as they were written, one a unit; of one that was done twice, the last.
    """

    def __init__(self, rows: Iterable[Mapping[str, Any]] = ()):
        self.rows: dict[str, Mapping[str, Any]] = {}
        self.dev: dict[str, dict[str, Counted]] = defaultdict(dict)
        self.test: dict[str, dict[str, Mapping[str, Any]]] = defaultdict(dict)
        for row in rows:
            self.add(row)

    def add(self, row: Mapping[str, Any]) -> None:
        self.rows[row["unit"]] = row
        if row["kind"] == "dev":
            self.dev[row["training"]] |= {name: Counted(**point) for name, point in row["points"].items()}
        elif row["kind"] == "test":
            self.test[row["training"]] |= row["points"]

    def mean(self, trainings: Sequence[Training], condition: Condition, scale: float) -> Counted | None:
        """On dev, over some trainings; None where one has not been counted."""
        found = [self.dev[each.name].get(f"{condition}@{scale:g}") for each in trainings]
        known = [each for each in found if each is not None]
        if len(known) < len(trainings):
            return None
        return Counted(*(sum(getattr(each, name) for each in known) / len(known) for name in ("right", "taste")))


def worth(counted: Counted, floor: float) -> tuple[bool, float]:
    """The rule, as a key: enough right comes before not enough; then the taste counts, or what is right."""
    enough = counted.right >= floor
    return enough, counted.taste if enough else counted.right


def base_trainings(regime: str, seeds: Iterable[int]) -> list[Training]:
    return [Training(regime, BASE, Settings(), seed) for seed in seeds]


def floor(plan: Plan, records: Records, regime: str, seeds: Iterable[int]) -> float | None:
    """The least share of right pictures that a choice needs; None where the base is not counted yet."""
    base = base_trainings(regime, seeds)
    found = [records.mean(base, "cfg", scale) for scale in plan.base_scales]
    known = [each.right for each in found if each is not None]
    return max(known) - TOLERANCE if len(known) == len(found) else None


def chosen_scale(
    records: Records, trainings: Sequence[Training], condition: Condition, scales: Sequence[float], least: float
) -> float | None:
    """The guidance scale of a condition, over all training seeds; None where something is not counted yet."""
    found = {scale: records.mean(trainings, condition, scale) for scale in scales}
    known = {scale: each for scale, each in found.items() if each is not None}
    return max(known, key=lambda scale: worth(known[scale], least)) if len(known) == len(found) else None


def base_scale(plan: Plan, records: Records, regime: str) -> float | None:
    """The base's own, by the same rule."""
    least = floor(plan, records, regime, range(plan.seeds))
    if least is None:
        return None
    return chosen_scale(records, base_trainings(regime, range(plan.seeds)), "cfg", plan.base_scales, least)


def candidates(entry: Entry, plan: Plan) -> list[Training]:
    """The trainings, of the first seed, among which the settings of an entry are chosen."""
    source = settings_from(entry, plan)
    return [Training(source.regime, source.method, settings, 0) for settings in search(plan, source.method)]


def searched_points(method: Method, plan: Plan) -> list[tuple[Condition, float]]:
    return [(condition, scale) for condition in method.own_conditions for scale in plan.searched_scales]


def chosen_settings(entry: Entry, plan: Plan, records: Records) -> Settings | None:
    """Rate, β and early stop that are best on dev with the first seed, at the best of a method's own conditions and
    scales; None where something is not counted yet."""
    tried = candidates(entry, plan)
    least = floor(plan, records, tried[0].regime, [0])
    if least is None:
        return None
    scores = {}
    for training in tried:
        points = [records.mean([training], *point) for point in searched_points(training.method, plan)]
        known = [each for each in points if each is not None]
        if len(known) < len(points):
            return None
        scores[training.settings] = max(worth(each, least) for each in known)
    best = max(scores, key=lambda settings: scores[settings])
    return matched(entry, plan, records, best) if entry.method.matched else best


def matched(entry: Entry, plan: Plan, records: Records, settings: Settings) -> Settings | None:
    """As many steps as bring the sum of the gates to what a gate of ½ in every step of the ordinary length would
    give, twice as many at most."""
    source = settings_from(entry, plan)
    row = records.rows.get(f"train {Training(source.regime, source.method, settings, 0).run}")
    if row is None or source.method.objective not in WITH_BETA:
        return None
    steps = min(plan.most_steps, round(plan.train_steps * 0.5 / row["metrics"]["mean_gate"]))
    return Settings(settings.rate, settings.beta, steps, steps)


def test_points(
    entry: Entry, plan: Plan, records: Records, trainings: Sequence[Training]
) -> list[tuple[Condition, float]] | None:
    """What to count on test: each condition at its own scale; at the exact form's also the proxy form, and α = 0 at
    (1+α) times it. None where something is not counted yet."""
    least = floor(plan, records, entry.regime, range(plan.seeds))
    if least is None:
        return None
    points: list[tuple[Condition, float]] = []
    for condition in entry.conditions:
        scale = chosen_scale(records, trainings, condition, entry.scales, least)
        if scale is None:
            return None
        points.append((condition, scale))
        if condition == "exact":
            points += [("proxy", scale), ("alpha0", round((1 + ALPHA) * scale, 3))]
    return list(dict.fromkeys(points))
