"""Which units come next, as what was measured so far says, and what they cost."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

from .choices import (
    Records,
    base_scale,
    base_trainings,
    candidates,
    chosen_settings,
    searched_points,
    test_points,
)
from .plan import Condition, Entry, Plan, Training
from .units import Unit, passes

# Seconds of one core of the machine that they were measured on.
STEP_SECONDS = {
    "supervised_chosen": 0.10,
    "supervised_all": 0.16,
    "diffusion_dpo": 0.25,
    "two_models_without_reference": 0.22,
    "chats": 0.30,
}
PASS_SECONDS = 0.00125  # of one picture
TRAIN_OVERHEAD, UNIT_OVERHEAD, MECHANISM_SECONDS = 3.0, 1.0, 3.5
CHECKPOINT_SECONDS = 0.5

# Whether a unit's product, a training's weights or a regime's pairs, is on this machine.
Ready = Callable[[Unit], bool]


def next_units(plan: Plan, records: Records, ready: Ready) -> Iterator[Unit]:
    """What can be done now, what matters most first. A unit may come twice."""
    for entry in plan.entries:
        yield from entry_units(entry, plan, records, ready)


def entry_units(entry: Entry, plan: Plan, records: Records, ready: Ready) -> Iterator[Unit]:
    """The next units of an entry: its base, its search, then all seeds at what was chosen, on dev and then on test."""
    yield from base_units(entry.regime, plan, records, ready)
    settings = chosen_settings(entry, plan, records)
    if settings is None:
        tried = candidates(entry, plan)
        if tried[0].regime != entry.regime:
            yield from base_units(tried[0].regime, plan, records, ready)
        for training in tried:
            yield from of_training(
                training, [dev_unit(training, searched_points(training.method, plan))], records, ready
            )
        return
    trainings = [Training(entry.regime, entry.method, settings, seed) for seed in range(plan.seeds)]
    alone = base_scale(plan, records, entry.regime)
    points = test_points(entry, plan, records, trainings)
    for training in trainings:
        units = [dev_unit(training, [(condition, scale) for scale in entry.scales]) for condition in entry.conditions]
        if points is not None:
            units = [Unit("test", entry.regime, training, tuple(points))]
        if is_told(entry, plan):
            units.append(Unit("mechanism", entry.regime, training))
            if training.method.is_pair and alone is not None:
                units.append(dev_unit(training, [("dispreferred", alone)]))
        yield from of_training(training, units, records, ready)


def is_told(entry: Entry, plan: Plan) -> bool:
    """Whether the mechanism of an entry is: of the main methods, on all pairs."""
    return entry.method.pairs == plan.pairs


def dev_unit(training: Training, points: list[tuple[Condition, float]]) -> Unit:
    return Unit("dev", training.regime, training, tuple(points))


def base_units(regime: str, plan: Plan, records: Records, ready: Ready) -> Iterator[Unit]:
    """A regime's base's counts; before them its pairs, where they are not here."""
    scale = base_scale(plan, records, regime)
    for training in base_trainings(regime, range(plan.seeds)):
        units = [dev_unit(training, [("cfg", each) for each in plan.base_scales])]
        if scale is not None:
            units.append(Unit("test", regime, training, (("cfg", scale),)))
        left = [rest for unit in units if (rest := remaining(unit, records))]
        yield from with_pairs(regime, left, ready)


def of_training(training: Training, units: list[Unit], records: Records, ready: Ready) -> Iterator[Unit]:
    """What is left of the units; before it the training, where its weights are not here."""
    left = [rest for unit in units if (rest := remaining(unit, records))]
    train = Unit("train", training.regime, training)
    yield from with_pairs(training.regime, left if ready(train) or not left else [train], ready)


def with_pairs(regime: str, units: list[Unit], ready: Ready) -> list[Unit]:
    """The units, or first the regime's pairs, without which none of them can be done."""
    pairs = Unit("pairs", regime)
    return units if ready(pairs) or not units else [pairs]


def remaining(unit: Unit, records: Records) -> Unit | None:
    """The unit without the points that are counted already; None where nothing is left."""
    if unit.kind == "mechanism" or unit.training is None:
        return None if unit.name in records.rows else unit
    found = (records.dev if unit.kind == "dev" else records.test)[unit.training.name]
    points = tuple((condition, scale) for condition, scale in unit.points if f"{condition}@{scale:g}" not in found)
    return replace(unit, points=points) if points else None


def cost(unit: Unit, plan: Plan) -> float:
    """Seconds that a unit takes."""
    if unit.kind == "pairs":
        drawn = plan.pairs * plan.candidates if unit.regime == "own" else 0
        return 12 + 2 * drawn * plan.pair_steps * PASS_SECONDS
    assert unit.training is not None, "only pairs are made without a training"
    if unit.kind == "train":
        steps = unit.training.settings.steps * STEP_SECONDS[unit.training.method.objective]
        return TRAIN_OVERHEAD + steps * plan.train_batch_size / 16 + CHECKPOINT_SECONDS * len(plan.stops)
    if unit.kind == "mechanism":
        return MECHANISM_SECONDS
    prompts = plan.dev_prompts if unit.kind == "dev" else plan.test_prompts
    return UNIT_OVERHEAD + passes(unit.points) * prompts * plan.sample_steps * PASS_SECONDS


def budget(plan: Plan) -> dict[str, float]:
    """Seconds of the whole plan by kind of unit and regime: every unit done in its order, with made-up results."""
    records = Records()
    done: set[str] = set()
    spent: dict[str, float] = {}
    while units := list(next_units(plan, records, lambda unit: unit.name in done)):
        for unit in units:
            if unit.name in done:
                continue
            done.add(unit.name)
            records.add(made_up(unit))
            key = f"{unit.regime}: {unit.kind}"
            spent[key] = spent.get(key, 0.0) + cost(unit, plan)
    return spent


def made_up(unit: Unit) -> dict[str, Any]:
    """A unit's record with results that say nothing; a gate that asks for the most steps."""
    row: dict[str, Any] = {"unit": unit.name, "kind": unit.kind, "metrics": {"mean_gate": 0.1}}
    if unit.training is not None:
        points = {f"{condition}@{scale:g}": {"right": 0.5, "taste": 0.5} for condition, scale in unit.points}
        row |= {"training": unit.training.name, "points": points}
    return row
