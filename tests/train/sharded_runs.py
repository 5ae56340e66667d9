"""Tiny runs in shards: processes as accelerate's launcher starts them, and what they do there.

Blocks are cut coarsely: each one is two messages between the processes, which cost more here than what they carry.
"""

import socket
from collections.abc import Callable
from pathlib import Path

import torch
from loaded_process import start
from safetensors.torch import load_file, save_file
from tiny_runs import trainer_of
from torch import Tensor

from chats_train.runs.processes import Processes
from chats_train.settings.config import RunConfig
from chats_train.sharding.tensors import whole
from chats_train.training.trainer import Trainer

# What `accelerate launch --use_fsdp --fsdp_version 2` sets.
LAUNCHED = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}
COARSE = ["CrossAttnDownBlock2D", "UNetMidBlock2DCrossAttn", "CrossAttnUpBlock2D", "JointTransformerBlock"]
COARSE += ["FluxTransformerBlock", "FluxSingleTransformerBlock"]


def start_processes(log: Path, count: int, function: Callable[..., object], *arguments: object, **environment: str):
    """Processes that call a function, joined as the launcher joins them; their logs are ``<log>-<rank>``."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    joined = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(count), **LAUNCHED}
    return [
        start(
            log.with_name(f"{log.name}-{rank}"),
            function,
            *arguments,
            **{**joined, "RANK": str(rank), "LOCAL_RANK": str(rank), **environment},
        )
        for rank in range(count)
    ]


def run_processes(log: Path, count: int, function: Callable[..., object], *arguments: object, **environment: str):
    """As :func:`start_processes`, until all have ended well."""
    started = start_processes(log, count, function, *arguments, **environment)
    for rank, process in enumerate(started):
        process.join(timeout=300)
        assert process.exitcode == 0, log.with_name(f"{log.name}-{rank}").read_text()[-3000:]


def cut_coarsely() -> None:
    import diffusers

    for name in ("UNet2DConditionModel", "SD3Transformer2DModel", "FluxTransformer2DModel"):
        getattr(diffusers, name)._no_split_modules = COARSE


def weights_after(trainer: Trainer, steps: int) -> dict[str, Tensor]:
    """All weights and how far they moved, averages, and the last step's and the validation's figures."""
    first = {name: whole(value).clone() for name, value in trainer.members.state().items()}
    reports = [trainer.train_step() for _ in range(steps)]
    figures = {**reports[-1].metrics, **{f"held-out {name}": value for name, value in trainer.validate().items()}}
    state = {f"weights.{name}": whole(value).clone() for name, value in trainer.members.state().items()}
    state |= {f"moves.{name}": state[f"weights.{name}"] - value for name, value in first.items()}
    if trainer.averages is not None:
        state |= {f"averages.{name}": whole(value) for name, value in trainer.averages.values.items()}
    return {**state, **{f"figures.{name}": torch.tensor(value) for name, value in figures.items()}}


def steps_in_shards(runs: list[RunConfig], steps: int, folder: Path, coarse: bool = True) -> None:
    """Takes steps of each run; the main process writes what they came to."""
    if coarse:
        cut_coarsely()
    processes = Processes(may_shard=True)
    for run in runs:
        state = weights_after(trainer_of(run, processes), steps)
        if processes.is_main:
            save_file(state, folder / f"{run.output_dir.name}.safetensors")


def distances(folder: Path, run: RunConfig, expected: dict[str, Tensor]) -> dict[str, float]:
    """By kind (weights, averages, figures), how far what processes came to is from what is expected, relative."""
    actual = load_file(folder / f"{run.output_dir.name}.safetensors")
    assert actual.keys() == expected.keys()
    return {
        kind: relative_distance(
            {name: value for name, value in expected.items() if name.startswith(kind)},
            {name: value for name, value in actual.items() if name.startswith(kind)},
        )
        for kind in sorted({name.split(".")[0] for name in expected})
    }


def relative_distance(expected: dict[str, Tensor], actual: dict[str, Tensor]) -> float:
    one, other = (
        torch.cat([values[name].double().flatten() for name in sorted(values)]) for values in (expected, actual)
    )
    return (torch.linalg.vector_norm(one - other) / torch.linalg.vector_norm(one)).item()
