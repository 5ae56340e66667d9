"""Members in shards against whole ones: two processes on the CPU, joined as accelerate's launcher joins them."""

import pytest
from sharded_runs import distances, run_processes, steps_in_shards, weights_after
from tiny_runs import trainer_of

from chats_train.runs.processes import Processes
from chats_train.sharding.layout import Layout, require_shardable, wanted_layout
from chats_train.support.errors import UserError

# Three pairs of two sizes a step, so that one process has fewer passes than the other.
UNEVEN = {"train_batch_size": 1, "validation_pairs": 3, "lr_warmup_steps": 0, "max_grad_norm": 0.01}
STEPS = 3
# Moves and metrics are small differences of large numbers.
BOUNDS = {"weights": 1e-6, "averages": 1e-6, "moves": 1e-3, "figures": 1e-3}


def test_two_processes_in_shards_come_to_what_one_comes_to(config, tmp_path):
    kinds = {
        "full": {"training_method": "full", "ema_decay": 0.9, "gradient_checkpointing": True},
        "lora": {"training_method": "lora", "memory": "low"},
    }
    alone = {
        name: weights_after(trainer_of(config(output=name, gradient_accumulation_steps=4, **UNEVEN, **kind)), STEPS)
        for name, kind in kinds.items()
    }
    runs = [config(output=name, gradient_accumulation_steps=2, **UNEVEN, **kind) for name, kind in kinds.items()]
    run_processes(tmp_path / "log", 2, steps_in_shards, runs, STEPS, tmp_path)
    for run in runs:
        found = distances(tmp_path, run, alone[run.output_dir.name])
        assert {kind: distance for kind, distance in found.items() if distance > BOUNDS[kind]} == {}, found


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
        ({"compile": True}, "`compile` is true, .* set false"),
    ):
        with pytest.raises(UserError, match=sentence):
            require_shardable(config(**settings))
