"""The study of distillation: what its rows are of, and that its pages follow from its results."""

import json
from pathlib import Path

import pytest

from benchmarks.distillation.measured import Measured
from benchmarks.distillation.plan import PLANS, REGIMES, chosen, pair_training, units
from benchmarks.distillation.report import report, short_table
from chats_train.distillation.settings import LEARNING_RATES, DistillSettings

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "benchmarks" / "distillation"
FULL = PLANS["full"]


@pytest.fixture(scope="module")
def results():
    return json.loads((FOLDER / "results.json").read_text(encoding="utf-8"))


def test_the_rows_are_of_the_trainers_defaults_and_other_rates_see_no_test():
    defaults = DistillSettings()
    assert (FULL.steps, FULL.rank, FULL.batch_size) == (defaults.steps, defaults.rank, defaults.batch_size)
    assert {"lora": FULL.rate, "full": FULL.full_rate} == LEARNING_RATES
    tested = {unit.student.rate for unit in units(FULL) if unit.student and unit.with_test}
    assert tested == set(LEARNING_RATES.values())


def test_a_unit_comes_once_and_after_the_pair_that_it_needs():
    done = set()
    for unit in units(FULL):
        assert unit.name not in done
        if unit.student:
            assert f"pair {unit.regime} seed{unit.seed} s{unit.student.scale:g}" in done
        done.add(unit.name)


def test_pairs_are_trained_and_sampled_as_the_miniature_chose():
    for regime in REGIMES:
        row = chosen(regime, "proxy")
        assert tuple(pair_training(regime, seed, FULL) for seed in FULL.seeds) == row.trainings
        at = [unit.scale for unit in units(FULL) if (unit.kind, unit.regime) == ("pair", regime)]
        assert at[: len(FULL.seeds)] == [row.scale] * len(FULL.seeds)


# What is committed.


def test_the_tables_follow_from_the_results(results):
    assert report(results, "results.png") + "\n" == (FOLDER / "results.md").read_text(encoding="utf-8")


def test_the_docs_have_a_table_of_each_regime_that_follows_from_the_results(results):
    page = (ROOT / "docs" / "evidence.md").read_text(encoding="utf-8")
    for regime in REGIMES:
        assert short_table(Measured(results), regime) in page
