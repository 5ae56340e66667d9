"""Cutting a model into shards, and filling them with what the main process alone has read."""

from __future__ import annotations

import atexit
from collections.abc import Callable, Iterable, Mapping
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from ..families import Family
from .layout import Layout
from .tensors import fill


class Shards:
    """The processes that models are cut over.

    Args:
        layout: how.
        device: of this process.
        is_main: whether it is the one that reads weights.
    """

    def __init__(self, layout: Layout, device: torch.device, is_main: bool):
        self.layout, self.device, self.is_main = layout, device, is_main

    def values_of(self, made: Callable[[], nn.Module]) -> dict[str, Tensor]:
        """Parameters and buffers of a module, in the main process; nothing in the others."""
        return _tensors(made()) if self.is_main else {}

    def cut(
        self,
        module: nn.Module,
        values: Mapping[str, Tensor],
        mixed_precision: str,
        whole: Iterable[nn.Parameter] = (),
    ) -> nn.Module:
        """A module in shards, in which the main process's values are.

        Args:
            module: on the meta device.
            values: of :meth:`values_of`.
            mixed_precision: of the forward passes: under `bf16` weights are gathered in that. Gradients are summed in
                fp32 whenever they are less.
            whole: parameters that stay whole in each process.
        """
        whole = set(whole)
        self._fully_shard(module, mixed_precision, whole)
        self._allocate(module, whole)
        for name, tensor in _tensors(module).items():
            value = torch.empty(tensor.shape, dtype=tensor.dtype, device=self.device)
            if self.is_main:
                value.copy_(values[name])
            torch.distributed.broadcast(value, src=0)
            fill(tensor, value)
        return module

    @cached_property
    def _mesh(self) -> DeviceMesh:
        if not torch.distributed.is_initialized():
            # One process that was started without a launcher: its peers are none.
            torch.distributed.init_process_group(store=torch.distributed.HashStore(), rank=0, world_size=1)
            atexit.register(torch.distributed.destroy_process_group)
        if self.layout.replicas == 1:
            return init_device_mesh(self.device.type, (self.layout.shards,), mesh_dim_names=("shard",))
        sizes = (self.layout.replicas, self.layout.shards)
        return init_device_mesh(self.device.type, sizes, mesh_dim_names=("replicate", "shard"))

    def _fully_shard(self, module: Any, mixed_precision: str, whole: set[nn.Parameter]) -> None:
        """torch's `fully_shard` of every block that diffusers would not split, and of the rest."""
        from torch.distributed.fsdp import (
            CPUOffloadPolicy,
            FSDPModule,
            MixedPrecisionPolicy,
            OffloadPolicy,
            fully_shard,
        )

        half = mixed_precision == "bf16"
        pinned = CPUOffloadPolicy(pin_memory=self.device.type != "cpu")
        options: dict[str, Any] = {
            "mesh": self._mesh,
            # Inputs stay as they are: timesteps in bf16 would be other timesteps.
            "mp_policy": MixedPrecisionPolicy(
                torch.bfloat16 if half else None, torch.float32 if half else None, cast_forward_inputs=False
            ),
            "offload_policy": pinned if self.layout.offload else OffloadPolicy(),
            "ignored_params": whole,
            # The last module too: three models would otherwise each leave what they gathered last in memory.
            "reshard_after_forward": True,
        }
        for block in _blocks(module):
            fully_shard(block, **options)
        for part in module.modules():
            if isinstance(part, FSDPModule):
                # Sums, as a step's gradient is one: each process's share of it is already weighted.
                part.set_gradient_divide_factor(1.0)
                part.set_force_sum_reduction_for_comms(True)

    def _allocate(self, module: nn.Module, whole: set[nn.Parameter]) -> None:
        names = [name for name, parameter in module.named_parameters() if parameter in whole]
        module.to_empty(device="cpu" if self.layout.offload else self.device)
        if self.layout.offload:
            # What is in no shard is used where it lies.
            for name in names:
                parameter = module.get_parameter(name)
                parameter.data = parameter.data.to(self.device)
            for name, buffer in list(module.named_buffers()):
                owner, _, end = name.rpartition(".")
                module.get_submodule(owner)._buffers[end] = buffer.to(self.device)


def largest_block(family: Family) -> int:
    """Parameters of the largest of the blocks that are gathered one at a time."""
    counted: set[nn.Parameter] = set()
    largest = 0
    for block in _blocks(family.empty_denoiser()):
        own = set(block.parameters()) - counted
        counted |= own
        largest = max(largest, sum(parameter.numel() for parameter in own))
    return largest


def _blocks(module: Any) -> list[nn.Module]:
    """What is cut and gathered together: what diffusers would not split, those inside another first, and the rest."""
    inner = [
        block
        for block in module.modules()
        if type(block).__name__ in (module._no_split_modules or ()) and block is not module
    ]
    return [*reversed(inner), module]


def _tensors(module: nn.Module) -> dict[str, Tensor]:
    return {**dict(module.named_parameters()), **dict(module.named_buffers())}
