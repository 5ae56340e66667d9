"""The benchmark of architectures on one of its rows: sound, whose network computes the first row of a pass from all."""

from dataclasses import replace

from conftest import newest_only, pack_module

pytestmark = newest_only


def test_a_row():
    name = "ACE-Step 1.5"
    measure = pack_module("benchmarks.architectures.measure")
    apply_pair = pack_module("nodes.sampling.apply").apply_pair
    negative = pack_module("nodes.sampling.proxy_prompt").build_negative
    # Without LoRAs on the layers that show that rows are in an order of their own.
    case = replace(pack_module("benchmarks.architectures.rows").ROWS[name](), without="tokenizer", forms=("exact",))
    errors = measure.errors_of(case, lambda *members: apply_pair(*members, 0.0, 1.0), negative)
    row = {"name": name, **errors.as_dict(), "comfyui": "any"}
    for kind in ("two_models", "lora_pair"):
        assert row[kind]["exact"] < 1e-5
        assert row["said"][kind] == []
    assert row["distance"] > 0.1
    line = next(
        line for line in pack_module("benchmarks.architectures.report").report([row]).splitlines() if name in line
    )
    assert line.count("|") == 6
