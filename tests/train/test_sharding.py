"""Members in shards against whole ones: two processes on the CPU, joined as accelerate's launcher joins them."""

import time

import pytest
import torch
from safetensors.torch import load_file
from sharded_runs import (
    assert_compiled_steps_like_plain,
    distances,
    equal,
    fail_alone,
    run_processes,
    save_shallow_base,
    start_processes,
    steps_in_shards,
    train_in_shards,
    weights_after,
)
from tiny_runs import trainer_of

from chats_train.inspection import describe
from chats_train.runs.checkpoint import RESUME, open_checkpoint
from chats_train.runs.processes import Processes
from chats_train.runs.trained import export
from chats_train.sharding.layout import Layout, require_shardable, wanted_layout
from chats_train.support.errors import UserError
from chats_train.training.optimizer import stochastic_round
from chats_train.training.trainer import micro_batches

# Three passes a step: one process has fewer than the other.
UNEVEN = {"seed": 2, "bucket_reso_steps": 16, "train_batch_size": 2, "validation_pairs": 3}
UNEVEN |= {"lr_warmup_steps": 0, "max_grad_norm": 0.01}
STEPS = 3
# Moves and metrics are small differences of large numbers.
BOUNDS = {"weights": 1e-6, "averages": 1e-6, "moves": 1e-3, "figures": 1e-3}


@pytest.fixture(scope="module")
def base(bases, tmp_path_factory):
    return str(save_shallow_base(bases("sd15"), tmp_path_factory.mktemp("base") / "sd15"))


def test_two_processes_in_shards_come_to_what_one_comes_to(config, base, tmp_path):
    """And to the same, to the last bit, when they go on from a checkpoint of theirs."""
    kinds = {
        "full": {"training_method": "full", "ema_decay": 0.9, "gradient_checkpointing": True},
        # Its reference is asked for draws that are new, of which one process has more.
        "lora": {"training_method": "lora", "memory": "low", "reference_draws": 1},
    }

    def runs(accumulation):
        shared = {"gradient_accumulation_steps": accumulation, "pretrained_model": base, **UNEVEN}
        return [config(output=name, **shared, **kind) for name, kind in kinds.items()]

    whole = {run.output_dir.name: trainer_of(run) for run in runs(2)}
    assert passes_of(whole["full"]) == [3] * STEPS
    alone = {name: weights_after(trainer, STEPS) for name, trainer in whole.items()}
    run_processes(tmp_path / "log", 2, steps_in_shards, runs(1), STEPS, tmp_path)
    for run in runs(1):
        found = distances(tmp_path, run, alone[run.output_dir.name])
        assert {kind: distance for kind, distance in found.items() if distance > BOUNDS[kind]} == {}, found


def test_compiled_blocks_in_shards_step_like_plain_ones(config, base, tmp_path):
    settings = {"training_method": "full", "gradient_checkpointing": True, "pretrained_model": base}
    runs = [config(output=f"compile-{each}", compile=each, **settings) for each in (False, True)]
    run_processes(tmp_path / "log", 1, assert_compiled_steps_like_plain, *runs)


def passes_of(trainer) -> list[int]:
    """How many each step has."""
    rows = [trainer.order.step(step, trainer.pairs_per_step) for step in range(STEPS)]
    picked = [[(epoch, trainer.samples[row]) for epoch, row in each] for each in rows]
    return [len(micro_batches(each, trainer.config.train_batch_size)) for each in picked]


def test_an_error_in_one_process_ends_all_with_its_sentence(tmp_path):
    """One waits where only a look now and then can help, one for the others."""
    started = start_processes(tmp_path / "log", 3, fail_alone)
    began = time.monotonic()
    for process in started:
        process.join(timeout=60)
        assert process.exitcode == 2
    assert time.monotonic() - began < 50
    logs = [(tmp_path / f"log-{rank}").read_text() for rank in range(3)]
    assert "error: process 1: `seed` is 3, which one process alone minds" in logs[0]
    assert "error: `seed` is 3, which one process alone minds" in logs[1]
    assert "process 1: `seed` is 3, which one process alone minds" in logs[2]


def test_a_run_in_shards_leaves_what_any_run_does(config, base, tmp_path):
    """Its preview, its pair with a probe, and a checkpoint that one process alone reads and goes on from."""
    shared = {"training_method": "full", "ema_decay": 0.9, "pretrained_model": base, "max_train_steps": 1, **UNEVEN}
    # Weights that are gathered in another precision than they rest in also draw, and are probed.
    shared["mixed_precision"] = "bf16"
    drawn = {"sample_every": 1, "sample_prompts": ["a b"], "sample_steps": 1}
    run = config(gradient_accumulation_steps=1, **shared, **drawn)
    run_processes(tmp_path / "log", 2, train_in_shards, run)
    assert [path.name for path in (run.output_dir / "previews").iterdir()] == ["step-00000001.png"]
    assert (run.output_dir / "proxy_probe.json").exists()

    path = run.output_dir / "checkpoints" / "step-00000001"
    assert len(list((path / "members").glob("*.safetensors"))) == 2
    part = next((path / "members").iterdir())
    assert "a part of a run's checkpoint" in describe(part)[0]
    found = open_checkpoint(path.parent, "latest", RESUME)
    alone = trainer_of(config(gradient_accumulation_steps=2, **shared))
    alone.load_state(found)
    for group, tensors in alone.state().tensors.items():
        assert equal(tensors, found.tensors(group)), group

    written = {path.name: load_file(path) for path in run.output_dir.glob("*.safetensors")}
    again = {path.name: load_file(path) for path in export(run, "latest", tmp_path / "again")}
    assert written.keys() == again.keys() == {"run_preferred.safetensors", "run_dispreferred.safetensors"}
    assert all(equal(tensors, again[name]) for name, tensors in written.items())
    damaged = part.read_bytes()
    part.write_bytes(damaged[:-1] + bytes([damaged[-1] ^ 1]))
    with pytest.raises(UserError, match=f"members/{part.name} is not as it was written"):
        open_checkpoint(path.parent, str(path), RESUME)


def test_rounding_does_not_depend_on_the_shards():
    values = torch.randn(5000, generator=torch.Generator().manual_seed(0))
    together = stochastic_round(values, "key")
    assert torch.equal(
        together, torch.cat([stochastic_round(values[:1234], "key"), stochastic_round(values[1234:], "key", 1234)])
    )
    assert not torch.equal(together, stochastic_round(values, "another"))
    assert not torch.equal(together, stochastic_round(values, "key", 1))


FSDP = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}
HSDP = {**FSDP, "ACCELERATE_USE_PARALLELISM_CONFIG": "true", "PARALLELISM_CONFIG_DP_REPLICATE_SIZE": "2"}


@pytest.mark.parametrize(
    ("environment", "layout"),
    [
        ({}, None),
        (FSDP, Layout(1, 4, False)),
        ({**FSDP, "FSDP_OFFLOAD_PARAMS": "true"}, Layout(1, 4, True)),
        ({**HSDP, "PARALLELISM_CONFIG_DP_SHARD_SIZE": "2"}, Layout(2, 2, False)),
    ],
)
def test_the_launchers_settings_are_followed(environment, layout, monkeypatch):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert wanted_layout(4, may_shard=True) == layout


@pytest.mark.parametrize(
    ("environment", "sentence"),
    [
        ({"ACCELERATE_USE_DEEPSPEED": "true"}, "asks for DeepSpeed, which is not used here; launch plainly"),
        ({"ACCELERATE_USE_MEGATRON_LM": "true"}, "asks for Megatron-LM"),
        ({"ACCELERATE_USE_FSDP": "true"}, "asks for FSDP 1; add `--fsdp_version 2`"),
        ({**FSDP, "FSDP_ACTIVATION_CHECKPOINTING": "true"}, "in the run `gradient_checkpointing: true`"),
        ({**HSDP, "PARALLELISM_CONFIG_DP_SHARD_SIZE": "3"}, "`dp_replicate_size` 2 × `dp_shard_size` 3 for 4 proc"),
        (
            {**HSDP, "PARALLELISM_CONFIG_DP_SHARD_SIZE": "x"},
            "SHARD_SIZE is `x` in the environment; set it to a num",
        ),
        (
            {**FSDP, "FSDP_OFFLOAD_PARAMS": "perhaps"},
            "_PARAMS is `perhaps` in the environment; set it to true",
        ),
        ({**HSDP, "PARALLELISM_CONFIG_TP_SIZE": "2"}, "sets `tp_size` 2; only FSDP is done here, set 1"),
    ],
)
def test_what_the_launcher_cannot_have_is_a_sentence(environment, sentence, monkeypatch):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=sentence):
        wanted_layout(4, may_shard=True)


def test_commands_that_hold_the_whole_pair_refuse_shards(monkeypatch):
    for name, value in FSDP.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match="which `train` alone uses: here each process holds the whole pair"):
        Processes()
    monkeypatch.setattr("torch.__version__", "2.8.1+cu126")
    with pytest.raises(UserError, match=r"torch is 2\.8\.1; members in shards need 2\.9 or later"):
        Processes(may_shard=True)


def test_settings_that_cannot_be_had_in_shards_are_named(config):
    require_shardable(config(optimizer="adafactor"))
    for settings, sentence in (
        ({"optimizer": "adamw8bit"}, "`optimizer` is adamw8bit, which is not done in shards"),
        ({"mixed_precision": "fp16"}, "`mixed_precision` is fp16, .* set bf16"),
        ({"base_quantization": "nf4"}, "`base_quantization` is nf4, .* set none"),
    ):
        with pytest.raises(UserError, match=sentence):
            require_shardable(config(**settings))
