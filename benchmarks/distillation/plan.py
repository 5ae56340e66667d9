"""What the study of distillation compares: pairs, students, and how much of everything. Names are keys of the
records."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, Literal

from ..miniature import measured as miniature
from ..miniature.plan import CHATS, FULL_PLAN, Training
from ..miniature.plan import PLANS as MINIATURES
from ..miniature.plan import Plan as Miniature

MINIATURE_RESULTS = Path(__file__).parents[1] / "miniature" / "results.json"
REGIMES = ("makers", "own")
# Where other learning rates are tried.
SEARCHED = "makers"
# What a student is asked about: noised latents of the pairs' chosen pictures; of those that the teacher draws of the
# pairs' prompts; or the points of the paths on which it draws them.
Data = Literal["pairs", "own pictures", "own paths"]


@dataclass(frozen=True)
class Student:
    """A distillation of a pair at a guidance scale (the paper's s) into a LoRA, or (rank 0) a whole model."""

    scale: float
    rate: float
    rank: int = 16
    data: Data = "pairs"

    @property
    def method(self) -> Literal["lora", "full"]:
        return "lora" if self.rank else "full"

    @property
    def name(self) -> str:
        kind = f"lora-{self.rank}" if self.rank else "full"
        return "-".join([kind, f"rate{self.rate:g}", self.data.replace(" ", "_"), f"s{self.scale:g}"])


@dataclass(frozen=True)
class Unit:
    """A piece of work: a regime's pairs of pictures; the base, or a trained pair, counted at one scale; a student,
    counted after each of ``marks`` steps. On test too, or (``with_test`` false) on dev alone."""

    kind: Literal["pictures", "base", "pair", "student"]
    regime: str
    seed: int = 0
    scale: float = 0.0
    student: Student | None = None
    marks: tuple[int, ...] = ()
    with_test: bool = True

    @property
    def name(self) -> str:
        if self.kind == "pictures":
            return f"{self.kind} {self.regime}"
        what = self.student.name if self.student else f"s{self.scale:g}"
        return " ".join([self.kind, self.regime, f"seed{self.seed}", what, *([] if self.with_test else ["on dev"])])


@dataclass(frozen=True)
class Plan:
    """How much of everything. ``rate``, ``rank`` and ``full_rate`` are the trainer's defaults; other learning rates
    are tried at this rank with the first seed of one regime, on dev alone."""

    name: str
    miniature: str = "full"
    seeds: tuple[int, ...] = (0, 1, 2)
    batch_size: int = 16
    marks: tuple[int, ...] = (20, 40, 80, 160)
    rate: float = 2e-3
    other_rates: tuple[float, ...] = (1e-3, 4e-3, 8e-3)
    full_rate: float = 3e-4
    rank: int = 16
    other_ranks: tuple[int, ...] = (4, 32, 8)
    other_scales: tuple[float, ...] = (2.107, 10.667)

    @property
    def steps(self) -> int:
        """Of each distillation."""
        return max(self.marks)

    @property
    def world(self) -> Miniature:
        return MINIATURES[self.miniature]


PLANS = {
    plan.name: plan
    for plan in (
        Plan("full"),
        Plan("tiny", "tiny", (0, 1), 4, (1, 2), other_rates=(1e-3,), other_ranks=(4,), other_scales=(2.107,)),
    )
}


@cache
def chosen(regime: str, condition: Literal["proxy", "cfg"]) -> miniature.Row:
    """What the miniature's record chose on dev: CHATS in the proxy form, or the base under CFG."""
    measured = miniature.Measured(json.loads(MINIATURE_RESULTS.read_text(encoding="utf-8")))
    return measured.rows[regime, CHATS.name if condition == "proxy" else "base", condition]


def pair_training(regime: str, seed: int, plan: Plan) -> Training:
    """The training of a pair as the miniature chose it; in a smaller plan on fewer pairs, for fewer steps."""
    settings = chosen(regime, "proxy").trainings[0].settings
    if plan.world != FULL_PLAN:
        settings = replace(settings, steps=plan.world.train_steps, stop=plan.world.train_steps)
    return Training(regime, replace(CHATS, pairs=plan.world.pairs), settings, seed)


def units(plan: Plan) -> list[Unit]:
    """All units in their order, what matters most first."""
    found = [Unit("pictures", regime) for regime in REGIMES]
    for regime in REGIMES:
        base, pair = chosen(regime, "cfg").scale, chosen(regime, "proxy").scale
        found += [Unit("base", regime, seed, base) for seed in plan.seeds]
        found += [Unit("pair", regime, seed, pair) for seed in plan.seeds]
    found += [rate_unit(plan, rate) for rate in plan.other_rates]
    for kind in kinds(plan):
        for seed in kind.seeds:
            for regime, student in kind.students.items():
                if student.scale != chosen(regime, "proxy").scale:
                    found.append(Unit("pair", regime, seed, student.scale))
                found.append(Unit("student", regime, seed, student=student, marks=kind.marks))
    return found


def rate_unit(plan: Plan, rate: float) -> Unit:
    """Another learning rate, on dev alone."""
    student = Student(chosen(SEARCHED, "proxy").scale, rate, plan.rank)
    return Unit("student", SEARCHED, plan.seeds[0], student=student, marks=plan.marks[-1:], with_test=False)


@dataclass(frozen=True)
class Kind:
    """One kind of student in each regime: after which steps it is counted, and with which seeds."""

    students: Mapping[str, Student]
    marks: tuple[int, ...]
    seeds: tuple[int, ...]


def kinds(plan: Plan) -> list[Kind]:
    """What is worth most first; a kind whose seeds are far apart in worth comes twice."""
    last, first, others = plan.marks[-1:], plan.seeds[:1], plan.seeds[1:]

    def students(**changes: Any) -> dict[str, Student]:
        found = {regime: Student(chosen(regime, "proxy").scale, plan.rate, plan.rank) for regime in REGIMES}
        return {regime: replace(student, **changes) for regime, student in found.items()}

    return [
        Kind(students(), plan.marks, plan.seeds),
        *(Kind(students(rank=rank), last, first) for rank in plan.other_ranks[:2]),
        Kind(students(data="own paths"), last, first),
        Kind(students(rank=0, rate=plan.full_rate), last, first),
        *(Kind(students(rank=rank), last, first) for rank in plan.other_ranks[2:]),
        Kind(students(data="own pictures"), last, first),
        *(Kind(students(rank=rank), last, others) for rank in plan.other_ranks),
        *(Kind(students(scale=scale), last, first) for scale in plan.other_scales),
    ]
