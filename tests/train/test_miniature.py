"""The study in the small world: its plan, its one rule, its correction, and that its pages follow from its results."""

import json
import random
from pathlib import Path

import pytest

from benchmarks.miniature.choices import TOLERANCE, Counted, Records, chosen_settings, floor, worth
from benchmarks.miniature.measured import Measured, holm
from benchmarks.miniature.plan import (
    DEFAULT_BETA,
    FULL_PLAN,
    FURTHER_PLAN,
    LOW,
    MAKERS,
    OWN,
    PLANS,
    QUICK_PLAN,
    REGIMES,
    TINY_PLAN,
    search,
)
from benchmarks.miniature.report import report
from benchmarks.miniature.schedule import budget, cost, made_up, next_units
from benchmarks.miniature.tables import docs_tables
from benchmarks.miniature.units import Unit, pair_prompts, prompts_of

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "benchmarks" / "miniature"


def all_units(plan, result=made_up):
    """Every unit of a plan in its order, and the records of all."""
    records = Records()
    done: dict[str, Unit] = {}

    def left():
        found = next_units(plan, records, lambda unit: unit.name in done)
        return {unit.name: unit for unit in found if unit.name not in done}

    while units := left():
        done.update(units)
        for unit in units.values():
            records.add(result(unit))
    return list(done.values()), records


def test_the_study_takes_less_than_five_hours_and_no_unit_long():
    assert sum(budget(FULL_PLAN).values()) < 4.5 * 3600
    assert sum(budget(FURTHER_PLAN).values()) < 5 * 3600
    assert sum(budget(QUICK_PLAN).values()) < 15 * 60
    units, _ = all_units(TINY_PLAN)
    assert {unit.kind for unit in units} == {"pairs", "train", "dev", "test", "mechanism"}
    assert {unit.regime for unit in units} == set(REGIMES)
    longest = max(cost(unit, FURTHER_PLAN) for unit in all_units(FURTHER_PLAN)[0])
    assert longest < 95


def test_a_unit_comes_only_after_what_it_needs_and_never_twice():
    units, records = all_units(TINY_PLAN)
    counted = [(unit.kind, unit.training, point) for unit in units for point in unit.points]
    assert len(counted) == len(set(counted))
    trained = set()
    for unit in units:
        if unit.kind == "train":
            trained.add(unit.training.run)
        elif unit.training and unit.training.method.pairs:
            assert unit.training.run in trained
    # Weights that were lost are trained again, but only where something is left to count.
    assert list(next_units(TINY_PLAN, records, lambda unit: unit.training is None)) == []


@pytest.mark.parametrize("plan", [FULL_PLAN, FURTHER_PLAN, QUICK_PLAN], ids=lambda plan: plan.name)
def test_every_method_is_searched_by_the_same_rates(plan):
    for entry in plan.entries:
        tried = search(plan, entry.method)
        assert {settings.rate for settings in tried} == set(plan.rates[entry.method.training_method])
        has_beta = entry.method.objective in ("chats", "diffusion_dpo")
        betas = plan.betas[entry.method.training_method] if has_beta else (DEFAULT_BETA,)
        assert {settings.beta for settings in tried} == set(betas)
    assert plan.dev_prompts == 96
    assert plan.test_prompts == 240


def test_dev_and_test_share_no_text_and_have_none_twice_and_no_pair_is_of_theirs():
    for plan in PLANS.values():
        texts = [prompt.text for kind in ("dev", "test") for prompt in prompts_of(kind, plan)]
        assert len(texts) == len(set(texts)) == plan.dev_prompts + plan.test_prompts
        assert set(texts).isdisjoint(prompt.text for prompt in pair_prompts(plan))


def test_the_rule_wants_enough_right_and_then_taste():
    choices = [Counted(0.9, 0.4), Counted(0.5, 0.6), Counted(0.49, 0.9), Counted(0.2, 1.0)]
    assert max(choices, key=lambda each: worth(each, 0.5)) == choices[1]
    assert max(choices[2:], key=lambda each: worth(each, 0.5)) == choices[2]


def test_settings_follow_from_dev():
    """Made-up results in which one learning rate has the most taste, and another more that is not right."""
    rates = FULL_PLAN.rates["full"]

    def result(unit):
        row = made_up(unit)
        if unit.kind == "dev" and unit.training.method.pairs:
            rate = unit.training.settings.rate
            found = {rates[1]: (0.5, 0.7), rates[2]: (0.45, 0.9)}.get(rate, (0.6, 0.4))
            row["points"] = {point: dict(zip(("right", "taste"), found, strict=True)) for point in row["points"]}
        return row

    _, records = all_units(FULL_PLAN, result)
    assert floor(FULL_PLAN, records, "makers", [0]) == pytest.approx(0.5 - TOLERANCE)
    for entry in FULL_PLAN.entries:
        if entry.method.training_method == "full":
            assert chosen_settings(entry, FULL_PLAN, records).rate == rates[1]
    assert MAKERS.settings_of is OWN.settings_of is None
    assert LOW.settings_of == "makers"


def test_holms_correction_by_hand():
    # 0.01 · 4, then 0.02 · 3, then 0.03 · 2 which may not be below 0.06, then 0.5.
    assert holm([0.03, 0.01, 0.5, 0.02]) == pytest.approx([0.06, 0.04, 0.5, 0.06])
    assert holm([0.9, 0.8]) == [1.0, 1.0]


def test_a_report_is_made_of_any_plan_that_is_done():
    rng = random.Random(0)

    def result(unit):
        row = made_up(unit) | {"regime": unit.regime, "seconds": 1.0}
        if unit.kind == "pairs":
            quality = {"right": 0.5, "taste": 0.5}
            row["pairs"] = {"pairs": 12, "chosen": quality, "rejected": quality}
        if unit.kind == "test":
            row["points"] = {
                point: {
                    "right": "".join(rng.choice("01") for _ in range(TINY_PLAN.test_prompts)),
                    "taste": [rng.randrange(1000) for _ in range(TINY_PLAN.test_prompts)],
                }
                for point in row["points"]
            }
        return row if unit.kind != "mechanism" else row | {"kind": "left out", "unit": f"no {unit.name}"}

    units, _ = all_units(TINY_PLAN, lambda unit: result(unit) | {"unit": unit.name})
    results = {
        "plan": "tiny",
        "date": "today",
        "machines": ["here"],
        "hours": 1,
        "units": [result(unit) for unit in units],
    }
    text = report(results, "plot.png")
    for regime in REGIMES:
        assert f"## {regime.capitalize()}" in text
    assert "Not done" not in text
    half = results | {"units": results["units"][: len(units) // 2]}
    assert "Not done, for lack of time: " in report(half, "plot.png")


# What is committed.


@pytest.fixture(scope="module")
def results():
    return json.loads((FOLDER / "results.json").read_text(encoding="utf-8"))


def test_the_tables_follow_from_the_results(results):
    assert report(results, "results.png") + "\n" == (FOLDER / "results.md").read_text(encoding="utf-8")


def test_the_docs_tables_follow_from_the_results(results):
    page = (ROOT / "docs" / "evidence.md").read_text(encoding="utf-8")
    tables = docs_tables(results)
    assert {*Measured(results).regimes, "LoRA", "pairs"} == set(tables)
    for name, table in tables.items():
        assert f"<!-- table: {name} -->\n{table}\n<!-- end of table -->" in page
