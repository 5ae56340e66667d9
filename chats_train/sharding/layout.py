"""What the launcher asks for: whether the members go into shards, over how many processes, and where they rest.

accelerate's launcher states its settings in the environment; torchrun has none, so its user states them there.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

import torch

from ..settings.config import RunConfig
from ..support.errors import UserError

# The first with all that is used: files that each process writes its part of, parameters that are left whole, sums in
# place of means.
TORCH = (2, 9)
OTHERS = {"ACCELERATE_USE_DEEPSPEED": "DeepSpeed", "ACCELERATE_USE_MEGATRON_LM": "Megatron-LM"}
# As accelerate reads them.
YES, NO = ("true", "1", "yes", "y", "t", "on"), ("", "false", "0", "no", "n", "f", "off")
# accelerate's ways of parallelism that split more than a batch.
UNKNOWN_SIZES = ("TP", "CP", "SP")


@dataclass(frozen=True)
class Layout:
    """How weights lie on the processes.

    Attributes:
        replicas: how many groups of processes hold a whole model each.
        shards: how many processes share a model.
        offload: whether weights, gradients and the optimizer's state rest in the CPU's memory.
    """

    replicas: int
    shards: int
    offload: bool


def wanted_layout(count: int, may_shard: bool) -> Layout | None:
    """What the launcher asked ``count`` processes for; None for whole models in each.

    Args:
        may_shard: whether the command can.

    Raises:
        UserError: for what is not done here.
    """
    for variable, name in OTHERS.items():
        if _is_set(variable):
            raise UserError(
                f"accelerate's config asks for {name}, which is not used here; launch plainly (`--multi_gpu`), or with "
                "FSDP 2 (`--use_fsdp --fsdp_version 2`)"
            )
    if not _is_set("ACCELERATE_USE_FSDP"):
        return None
    if not may_shard:
        raise UserError(
            "accelerate's config asks for FSDP, which `train` alone uses: here each process holds the whole pair; "
            "launch plainly (`accelerate launch --multi_gpu --num_processes N -m chats_train …`)"
        )
    _refuse_what_is_not_done()
    replicas, shards = _sizes(count)
    return Layout(replicas, shards, _is_set("FSDP_OFFLOAD_PARAMS"))


def require_shardable(config: RunConfig) -> None:
    """Raises UserError for settings of a run that cannot be had in shards."""
    problems = {
        "optimizer": (config.optimizer == "adamw8bit", "set adamw, or adafactor for less memory"),
        "mixed_precision": (config.mixed_precision == "fp16", "set bf16"),
        "base_quantization": (config.base_quantization != "none", "set none"),
    }
    for setting, (holds, way_out) in problems.items():
        if holds:
            value = getattr(config, setting)
            raise UserError(f"`{setting}` is {value}, which is not done in shards (FSDP); {way_out}")


def _refuse_what_is_not_done() -> None:
    if os.environ.get("FSDP_VERSION", "1") != "2":
        raise UserError(
            "accelerate's config asks for FSDP 1; add `--fsdp_version 2` (in its file `fsdp_version: 2`, "
            "with torchrun FSDP_VERSION=2 in the environment)"
        )
    if _is_set("FSDP_ACTIVATION_CHECKPOINTING"):
        raise UserError(
            "accelerate's config sets `fsdp_activation_checkpointing`; set it to false, and in the run "
            "`gradient_checkpointing: true`"
        )
    version = torch.__version__.split("+")[0]
    if tuple(int(number) for number in version.split(".")[:2]) < TORCH:
        raise UserError(f"torch is {version}; members in shards need 2.9 or later: `pip install -U torch`")


def _sizes(count: int) -> tuple[int, int]:
    """Replicas and shards."""
    if not _is_set("ACCELERATE_USE_PARALLELISM_CONFIG"):
        return 1, count
    for name in UNKNOWN_SIZES:
        if (size := _size(name)) != 1:
            raise UserError(f"accelerate's config sets `{name.lower()}_size` {size}; only FSDP is done here, set 1")
    replicas, shards = _size("DP_REPLICATE"), _size("DP_SHARD")
    if replicas * shards != count:
        raise UserError(
            f"accelerate's config has `dp_replicate_size` {replicas} × `dp_shard_size` {shards} for {count} processes; "
            "set two numbers whose product is theirs"
        )
    return replicas, shards


def _size(name: str) -> int:
    variable = f"PARALLELISM_CONFIG_{name}_SIZE"
    value = os.environ.get(variable, "1")
    if not value.isdecimal():
        raise UserError(f"{variable} is `{value}` in the environment; set it to a number of processes")
    return int(value)


def _is_set(variable: str) -> bool:
    value = os.environ.get(variable, "")
    if value.lower() not in YES + NO:
        raise UserError(f"{variable} is `{value}` in the environment; set it to true or false")
    return value.lower() in YES
