"""Tiny runs in shards: processes as accelerate's launcher starts them, and what they do there.

Blocks are cut coarsely: each one is two messages between the processes, which cost more here than what they carry.
"""

import json
import os
import shutil
import socket
import time
from collections.abc import Callable
from functools import partialmethod
from pathlib import Path

import torch
from loaded_process import start
from safetensors.torch import load_file, save_file
from tiny_pipelines import randomised
from tiny_runs import trainer_of
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor

from chats_train.cli import main
from chats_train.runs.checkpoint import RESUME, Checkpoint, open_checkpoint
from chats_train.runs.processes import Processes
from chats_train.runs.saving import save_state
from chats_train.settings.config import RunConfig
from chats_train.sharding.tensors import own, whole
from chats_train.sharding.together import ending_together
from chats_train.support.dtypes import TORCH_DTYPES
from chats_train.support.errors import UserError
from chats_train.training.optimizer import make_optimizer
from chats_train.training.trainer import Trainer

# What `accelerate launch --use_fsdp --fsdp_version 2` sets.
LAUNCHED = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}
COARSE = ["UNetMidBlock2DCrossAttn", "JointTransformerBlock", "FluxTransformerBlock"]
WAIT_SECONDS = 900


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
        process.join(timeout=WAIT_SECONDS)
        assert process.exitcode == 0, log.with_name(f"{log.name}-{rank}").read_text()[-3000:]


def save_shallow_base(tiny: Path, folder: Path) -> Path:
    """SD1.5 with one level, of a tiny base of more: a step is mostly Python's work on each module."""
    from diffusers import UNet2DConditionModel

    shutil.copytree(tiny, folder)
    shallow = {"block_out_channels": (16,), "layers_per_block": 1, "cross_attention_dim": 24, "norm_num_groups": 8}
    blocks = {"down_block_types": ("CrossAttnDownBlock2D",), "up_block_types": ("CrossAttnUpBlock2D",)}
    unet = UNet2DConditionModel(**shallow, **blocks, attention_head_dim=8)
    randomised(unet, 0).save_pretrained(folder / "unet")
    return folder


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


def assert_shards_step_like_wholes(run: RunConfig, count: int) -> None:
    """Of the same gradients, to the last bit: also where there are fewer rows than processes."""
    mesh = init_device_mesh("cpu", (count,), mesh_dim_names=("shard",))
    for optimizer, dtype in (("adafactor", "fp32"), ("adafactor", "bf16"), ("adamw", "fp32"), ("adamw", "bf16")):
        config = run.model_copy(update={"optimizer": optimizer, "weight_dtype": dtype})
        generator = torch.Generator().manual_seed(1)
        starts = [torch.randn(shape, generator=generator).to(TORCH_DTYPES[dtype]) for shape in ((5, 3), (1, 7), (9,))]
        plain = [nn.Parameter(start.clone()) for start in starts]
        sharded = [nn.Parameter(distribute_tensor(start, mesh, [Shard(0)])) for start in starts]
        optimizers = [make_optimizer(config, parameters) for parameters in (plain, sharded)]
        for _ in range(3):
            for one, other in zip(plain, sharded, strict=True):
                one.grad = torch.randn(one.shape, generator=generator).to(one.dtype)
                other.grad = distribute_tensor(one.grad, mesh, [Shard(0)])
            for each in optimizers:
                each.step()
            # As a checkpoint keeps it and gives it back.
            optimizers[1].load_state_dict(optimizers[1].state_dict())
        for one, other in zip(plain, sharded, strict=True):
            assert torch.equal(one, whole(other)), (optimizer, dtype)


def assert_resumes(trainer: Trainer, processes: Processes) -> None:
    """A new trainer goes on from this one's checkpoint as this one does."""
    # One of its own: the same run by other processes is summed in another order.
    folder = trainer.config.output_dir / f"checkpoints-{processes.one_number():x}"
    save_state(folder, trainer.state(), None, processes)
    other = trainer_of(trainer.config, processes)
    found = open_checkpoint(folder, "latest", RESUME)
    assert found is not None
    other.load_state(found)
    for each in (trainer, other):
        each.train_step()
    expected, actual = trainer.state().tensors, other.state().tensors
    for group, tensors in expected.items():
        for name, value in tensors.items():
            # What is not known yet of the reference is NaN.
            one, two = (own(each).nan_to_num() for each in (value, actual[group][name]))
            assert torch.equal(one, two), (group, name)


def steps_in_shards(runs: list[RunConfig], steps: int, folder: Path, coarse: bool = True) -> None:
    """Takes steps of each run; the main process writes what they came to."""
    if coarse:
        cut_coarsely()
    processes = Processes(may_shard=True)
    assert_shards_step_like_wholes(runs[0], processes.count)
    for run in runs:
        trainer = trainer_of(run, processes)
        state = weights_after(trainer, steps)
        assert_resumes(trainer, processes)
        if processes.is_main:
            save_file(state, folder / f"{run.output_dir.name}.safetensors")


def assert_compiled_steps_like_plain(plain: RunConfig, compiled: RunConfig) -> None:
    """Where every block is cut, and so of another class. What torch traces is run as it is: a compiler takes longer."""
    torch.nn.Module.compile = partialmethod(torch.nn.Module.compile, backend="aot_eager")
    processes = Processes(may_shard=True)
    trainers = [trainer_of(config, processes) for config in (plain, compiled)]
    reports = [trainer.train_step().metrics for trainer in trainers]
    counted = torch._dynamo.utils.counters
    assert counted["stats"]["unique_graphs"] == 2  # with a graph and without
    assert not counted["graph_break"]
    weights, gradients = (
        [torch.cat([own(of(p)).flatten() for p in each.parameters.values()]) for each in trainers]
        for of in (lambda p: p, lambda p: p.grad)
    )
    for one, other in (weights, gradients):
        torch.testing.assert_close(other, one, rtol=0, atol=1e-5 * one.abs().max().item())
    assert reports[1].keys() == reports[0].keys()
    for name, value in reports[0].items():
        assert abs(reports[1][name] - value) <= 1e-5 * abs(value), name


def train_in_shards(run: RunConfig) -> int:
    """`python -m chats_train train`, and what it says."""
    cut_coarsely()
    path = run.cache_dir.with_name(f"{run.output_dir.name}-{os.getpid()}.yaml")
    path.write_text(json.dumps(run.model_dump(mode="json")))
    return main(["train", str(path)])


def fail_alone() -> int:
    """The second process fails, the first sleeps, the third waits for both; the command line's way with an error."""
    processes = Processes(may_shard=True)
    try:
        with ending_together(processes.index):
            if processes.index == 1:
                raise UserError("`seed` is 3, which one process alone minds")
            if processes.index == 0:
                time.sleep(100)
            processes.wait()
    except UserError as error:
        print(f"error: {error}")
        return 2
    return 0


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


def differing(one: Path, other: Path) -> list[str]:
    """The groups of a checkpoint whose numbers differ from another's. Which process writes a tensor that all have whole
    is left to chance."""
    found = [Checkpoint(path, RESUME) for path in (one, other)]
    groups = ("members", "optimizer", "averages")
    return [group for group in groups if not equal(*(checkpoint.tensors(group) for checkpoint in found))]


def equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in one.items())


def relative_distance(expected: dict[str, Tensor], actual: dict[str, Tensor]) -> float:
    one, other = (
        torch.cat([values[name].double().flatten() for name in sorted(values)]) for values in (expected, actual)
    )
    return (torch.linalg.vector_norm(one - other) / torch.linalg.vector_norm(one)).item()
