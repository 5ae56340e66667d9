"""A pair trained on ratings parts from one trained on their reverse: the cheapest of what `benchmarks/learning.py`
measures."""

import dataclasses
import importlib.util
import sys

from conftest import ROOT, newest_only


@newest_only
def test_a_pair_learns_what_was_rated(pack):
    spec = importlib.util.spec_from_file_location("learning", ROOT / "benchmarks" / "learning.py")
    learning = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(learning)
    # A quarter of the benchmark's draws.
    learning.PROMPTS = 2
    learning.RECIPES["sd3"] = dataclasses.replace(learning.RECIPES["sd3"], accumulate=1)
    found = learning.measured("sd3", ("as rated", "reversed"), ("proxy",))
    shift, up = found["proxy"]["contrasts"]["as rated − reversed"]
    assert shift >= learning.LEAST_SHIFT
    assert up >= learning.LEAST_UP
