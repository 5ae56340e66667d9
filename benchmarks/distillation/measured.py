"""What a file of results holds: rows (the base, a pair, a student after some steps) over the training seeds, what they
came to on test, and how two of them differ picture by picture."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from chats_train.evaluation.statistics import Estimate, PictureValues, estimate, paired_difference

from ..miniature.measured import Quantity
from .plan import PLANS, REGIMES, Kind, Plan, Student, Unit, chosen, kinds


@dataclass(frozen=True)
class Row:
    """Units of one kind, a seed each, and which of their points; ``title`` names it in a table."""

    title: str
    units: tuple[Unit, ...]
    point: str


@dataclass
class Measured:
    """A file of results."""

    results: Mapping[str, Any]

    @cached_property
    def records(self) -> dict[str, Mapping[str, Any]]:
        return {row["unit"]: row for row in self.results["units"]}

    @property
    def plan(self) -> Plan:
        return PLANS[self.results["plan"]]

    def base(self, regime: str) -> Row:
        units = [Unit("base", regime, seed, chosen(regime, "cfg").scale) for seed in self.plan.seeds]
        return Row("base, CFG", tuple(units), "base")

    def pair(self, regime: str) -> Row:
        return self.of_pair(regime, chosen(regime, "proxy").scale, self.plan.seeds)

    def of_pair(self, regime: str, scale: float, seeds: tuple[int, ...]) -> Row:
        return Row("pair, CHATS", tuple(Unit("pair", regime, seed, scale) for seed in seeds), "pair")

    def preferred(self, regime: str) -> Row:
        return Row("its preferred model alone", self.pair(regime).units, "preferred")

    @cached_property
    def counted(self) -> list[Kind]:
        """The kinds of students that are counted, with the seeds with which they are in both regimes, in the order of
        the tables."""
        found: dict[str, Kind] = {}
        for kind in kinds(self.plan):
            seeds = tuple(seed for seed in kind.seeds if all(self.has(kind, regime, seed) for regime in REGIMES))
            name = " ".join(student.name for student in kind.students.values())
            before = found[name].seeds if name in found else ()
            found[name] = replace(kind, seeds=before + seeds)
        return sorted(
            (kind for kind in found.values() if kind.seeds), key=lambda kind: place(kind.students[REGIMES[0]])
        )

    def has(self, kind: Kind, regime: str, seed: int) -> bool:
        return Unit("student", regime, seed, student=kind.students[regime]).name in self.records

    def students(self, regime: str) -> list[Row]:
        """At the pair's own scale, each after every number of steps that it was counted at."""
        return [
            self.of_student(kind, regime, step, kind.seeds)
            for kind in self.counted
            if kind.students[regime].scale == chosen(regime, "proxy").scale
            for step in kind.marks
        ]

    def default(self, regime: str) -> Row:
        """The LoRA of the trainer's defaults, after its last step."""
        first = kinds(self.plan)[0]
        return self.of_student(first, regime, self.plan.steps, first.seeds)

    def at_scales(self, regime: str) -> list[tuple[float, Row, Row]]:
        """Of the first seed: a scale, the pair at it, and its student after the last step."""
        plan, found = self.plan, []
        for kind in self.counted:
            student, first = kind.students[regime], plan.seeds[:1]
            if student.data == "pairs" and student.rank == plan.rank:
                pair = self.of_pair(regime, student.scale, first)
                found.append((student.scale, pair, self.of_student(kind, regime, plan.steps, first)))
        return found

    def of_student(self, kind: Kind, regime: str, step: int, seeds: tuple[int, ...]) -> Row:
        student = kind.students[regime]
        units = tuple(Unit("student", regime, seed, student=student, marks=kind.marks) for seed in seeds)
        size = f"LoRA, rank {student.rank}" if student.rank else "whole model"
        data = {"pairs": "", "own pictures": ", on the pair's pictures", "own paths": ", on the pair's paths"}
        fewer = f" ({len(seeds)} seed{'s' if len(seeds) > 1 else ''})" if len(seeds) < len(self.plan.seeds) else ""
        return Row(f"{size}{data[student.data]}{fewer}, {step} steps", units, str(step))

    def points(self, row: Row) -> list[tuple[int, Mapping[str, Any]]]:
        """By training seed."""
        return [(unit.seed, self.records[unit.name]["points"][row.point]) for unit in row.units]

    def values(self, row: Row, quantity: Quantity) -> PictureValues:
        """Of test, by text and seed."""
        found: dict[tuple[str, int], float] = {}
        for seed, point in self.points(row):
            each = point["test"][quantity]
            values = [int(bit) for bit in each] if quantity == "right" else [value / 1000 for value in each]
            found |= {(str(place), seed): float(value) for place, value in enumerate(values)}
        return found

    def estimate(self, row: Row, quantity: Quantity) -> Estimate:
        return estimate(self.values(row, quantity))

    def difference(self, left: Row, right: Row, quantity: Quantity) -> Estimate:
        return paired_difference(self.values(left, quantity), self.values(right, quantity))

    def mean(self, row: Row, *keys: str) -> float | None:
        """Of a number of a point, such as `dev`, `right`, over the seeds; None where it has none."""
        found = []
        for _, point in self.points(row):
            value: Any = point
            for key in keys:
                value = value.get(key) if value is not None else None
            found.append(value)
        return None if None in found else sum(found) / len(found)


def place(student: Student) -> tuple[bool, bool, int, float]:
    """Where a student stands in tables: on pairs by rank, whole models, on other data; at one scale after another."""
    return student.data == "own pictures", student.data == "own paths", student.rank or 1_000, student.scale
