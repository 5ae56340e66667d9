"""What a file of results holds: rows (a method under a condition at the scale chosen for it), what they came to on
test, and how two of them differ."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

from chats_train.evaluation.statistics import Estimate, PictureValues, estimate, paired_difference, sign_flip_p_value

from .choices import Records, base_scale, base_trainings, chosen_scale, chosen_settings, floor
from .plan import ALPHA, BASE, PLANS, Condition, Entry, Method, Settings, Training

Quantity = Literal["right", "taste"]
# Of each comparison's permutation test.
FLIPS = 20_000
QUANTITIES: tuple[Quantity, ...] = ("right", "taste")


@dataclass(frozen=True)
class Row:
    """A method under a condition at a scale (the paper's s), over some trainings."""

    regime: str
    method: Method
    condition: Condition
    scale: float
    trainings: tuple[Training, ...]


@dataclass(frozen=True)
class Difference:
    """Of two rows, paired picture by picture: by quantity the difference and its p-value, not yet corrected."""

    left: Row
    right: Row
    estimates: Mapping[Quantity, Estimate]
    p_values: Mapping[Quantity, float]


@dataclass
class Measured:
    """A file of results, with everything chosen on dev chosen anew."""

    results: Mapping[str, Any]
    differences: dict[tuple[Row, Row], Difference] = field(default_factory=dict)

    @cached_property
    def records(self) -> Records:
        return Records(self.results["units"])

    @cached_property
    def plan(self) -> Any:
        return PLANS[self.results["plan"]]

    @cached_property
    def settings(self) -> dict[Entry, Settings]:
        """Of each entry that is counted on test in full."""
        return {
            entry: settings
            for entry in self.plan.entries
            if (settings := chosen_settings(entry, self.plan, self.records))
            and all(self.row_of(entry, settings, condition) for condition in entry.conditions)
        }

    @cached_property
    def rows(self) -> dict[tuple[str, str, Condition], Row]:
        """By regime, method's name and condition: the base's first, then those of the entries."""
        found = {}
        for regime in self.regimes:
            scale = base_scale(self.plan, self.records, regime)
            assert scale is not None, "an entry is done only after its base"
            trainings = tuple(base_trainings(regime, range(self.plan.seeds)))
            found[regime, BASE.name, "cfg"] = Row(regime, BASE, "cfg", scale, trainings)
        for entry, settings in self.settings.items():
            for condition in entry.conditions:
                row = self.row_of(entry, settings, condition)
                assert row is not None, "only entries that are done are here"
                found[entry.regime, entry.method.name, condition] = row
        return found

    @property
    def regimes(self) -> list[str]:
        return list(dict.fromkeys(entry.regime for entry in self.settings))

    def trainings(self, entry: Entry, settings: Settings) -> tuple[Training, ...]:
        return tuple(Training(entry.regime, entry.method, settings, seed) for seed in range(self.plan.seeds))

    def row_of(self, entry: Entry, settings: Settings, condition: Condition) -> Row | None:
        """A condition at its scale; None where it is not counted."""
        trainings = self.trainings(entry, settings)
        least = floor(self.plan, self.records, entry.regime, range(self.plan.seeds))
        if least is None:
            return None
        scale = chosen_scale(self.records, trainings, condition, entry.scales, least)
        row = Row(entry.regime, entry.method, condition, scale, trainings) if scale is not None else None
        return row if row and self.is_counted(row) else None

    def is_counted(self, row: Row) -> bool:
        return all(point_name(row) in self.records.test[each.name] for each in row.trainings)

    def at(self, row: Row, condition: Condition, scale: float) -> Row:
        """The same trainings under another condition, or at another scale."""
        return Row(row.regime, row.method, condition, scale, row.trainings)

    def beside_exact(self, exact: Row) -> tuple[Row, Row]:
        """The proxy form at the exact one's scale, and α = 0 where equal members would draw the same."""
        return self.at(exact, "proxy", exact.scale), self.at(exact, "alpha0", round((1 + ALPHA) * exact.scale, 3))

    def values(self, row: Row, quantity: Quantity, seed: int | None = None) -> PictureValues:
        """By text and training seed; of one training seed, or of all."""
        found: dict[tuple[str, int], float] = {}
        for training in row.trainings:
            if seed in (None, training.seed):
                each = self.records.test[training.name][point_name(row)][quantity]
                values = [int(bit) for bit in each] if quantity == "right" else [value / 1000 for value in each]
                found |= {(str(place), training.seed): float(value) for place, value in enumerate(values)}
        return found

    def estimate(self, row: Row, quantity: Quantity) -> Estimate:
        return estimate(self.values(row, quantity))

    def difference(self, left: Row, right: Row) -> Difference:
        """Of two rows; it is made once, and counts as one comparison."""
        if (left, right) not in self.differences:
            both = {name: (self.values(left, name), self.values(right, name)) for name in QUANTITIES}
            self.differences[left, right] = Difference(
                left,
                right,
                {name: paired_difference(*pair) for name, pair in both.items()},
                {name: sign_flip_p_value(*pair, FLIPS) for name, pair in both.items()},
            )
        return self.differences[left, right]

    def by_seed(self, difference: Difference, quantity: Quantity) -> list[float]:
        """The difference of each training seed."""
        return [
            paired_difference(
                self.values(difference.left, quantity, seed), self.values(difference.right, quantity, seed)
            ).mean
            for seed in range(self.plan.seeds)
        ]

    def corrected(self) -> dict[tuple[Row, Row, Quantity], float]:
        """The p-values of all comparisons that were made, corrected for their number."""
        keys = [(*rows, name) for rows in self.differences for name in QUANTITIES]
        values = [self.differences[left, right].p_values[name] for left, right, name in keys]
        return dict(zip(keys, holm(values), strict=True))


def point_name(row: Row) -> str:
    return f"{row.condition}@{row.scale:g}"


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down correction (Scandinavian Journal of Statistics 6, 1979): the smallest of n times n, the next
    times n − 1, and none smaller than one before it."""
    order = sorted(range(len(p_values)), key=lambda index: p_values[index])
    found, least = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(order):
        least = max(least, min(1.0, (len(p_values) - rank) * p_values[index]))
        found[index] = least
    return found
