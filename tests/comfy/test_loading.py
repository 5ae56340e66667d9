"""What having the pack installed costs and changes for those who do not use it: nothing."""

import json
import os
import subprocess
import sys
from pathlib import Path

import measure_loading
import pytest

BOUND_SECONDS = 0.05


@pytest.fixture(scope="module")
def output() -> list[str]:
    """The lines of one run of measure_loading.py."""
    script = Path(measure_loading.__file__)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    run = subprocess.run(
        [sys.executable, "-u", str(script)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        env=environment,
    )
    assert run.returncode == 0, run.stdout[-4000:]
    return run.stdout.splitlines()


@pytest.fixture(scope="module")
def measured(output) -> dict:
    return json.loads(output[-1])


def test_loading_prints_nothing(output):
    begin, end = output.index(measure_loading.BEGIN), output.index(measure_loading.END)
    assert output[begin + 1 : end] == []


def test_loading_takes_no_time_to_speak_of(measured):
    """The least of several: a busy machine makes some slower, none faster."""
    assert min(measured["seconds"]) < BOUND_SECONDS, measured["seconds"]


def test_a_stock_sampler_gives_the_same_to_the_bit(measured):
    assert measured["same"]


def test_what_rates_is_loaded_with_the_first_that_is_used(measured):
    assert measured["rating"] == []
