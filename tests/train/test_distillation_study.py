"""The study of distillation: what it chooses and from what, and that its pages follow from its results."""

import json
from pathlib import Path

import pytest

from benchmarks.distillation.choices import chosen_rate
from benchmarks.distillation.measured import Measured
from benchmarks.distillation.plan import PLANS, REGIMES, chosen, pair_training, units
from benchmarks.distillation.report import report, short_table

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "benchmarks" / "distillation"
FULL = PLANS["full"]


@pytest.fixture(scope="module")
def results():
    return json.loads((FOLDER / "results.json").read_text(encoding="utf-8"))


def test_the_rate_is_chosen_on_dev_alone_by_the_distance_from_the_pairs_pictures():
    distances = dict(zip(FULL.rates, (0.3, 0.1, 0.2), strict=True))
    searched = [unit for unit in units(FULL, None) if unit.student]
    assert not any(unit.with_test for unit in searched)
    rows = {unit.name: {"points": {"160": {"dev": {"distance": distances[unit.student.rate]}}}} for unit in searched}
    assert chosen_rate(FULL, rows) == FULL.rates[1]
    assert chosen_rate(FULL, dict(list(rows.items())[:-1])) is None
    counted = [unit for unit in units(FULL, FULL.rates[1]) if unit.student and unit.with_test and unit.student.rank]
    assert {unit.student.rate for unit in counted} == {FULL.rates[1]}


def test_a_unit_comes_once_and_after_the_pair_that_it_needs():
    done = set()
    for unit in units(FULL, 2e-3):
        assert unit.name not in done
        if unit.student:
            assert f"pair {unit.regime} seed{unit.seed} s{unit.student.scale:g}" in done
        done.add(unit.name)


def test_pairs_are_trained_and_sampled_as_the_miniature_chose():
    for regime in REGIMES:
        row = chosen(regime, "proxy")
        assert tuple(pair_training(regime, seed, FULL) for seed in FULL.seeds) == row.trainings
        assert {unit.scale for unit in units(FULL, None) if (unit.kind, unit.regime) == ("pair", regime)} == {row.scale}


# What is committed.


def test_the_tables_follow_from_the_results(results):
    assert report(results, "results.png") + "\n" == (FOLDER / "results.md").read_text(encoding="utf-8")


def test_the_docs_have_a_table_of_each_regime_that_follows_from_the_results(results):
    page = (ROOT / "docs" / "evidence.md").read_text(encoding="utf-8")
    for regime in REGIMES:
        assert short_table(Measured(results), regime) in page
