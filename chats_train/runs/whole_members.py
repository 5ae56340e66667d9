"""Members as whole models, and which kind of members a run has."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch
from torch import nn

from ..families import Denoiser, Family
from ..settings.config import RunConfig
from ..sharding.modules import Shards
from .adapters import LoRAMembers
from .members import DISPREFERRED, PREFERRED, REFERENCE, Members, checkpointing, compile_blocks


class FullMembers(Members):
    """Whole models, each of its own; fp32 masters, or bf16 to be updated with stochastic rounding."""

    def __init__(
        self,
        config: RunConfig,
        family: Family,
        names: Iterable[str],
        device: torch.device,
        with_reference: bool,
        shards: Shards | None = None,
    ):
        super().__init__(names, one_graph=config.memory == "low")
        self._prepared = partial(_prepared, family, device) if shards is None else _cut(family, shards)
        self._by_name = {name: self._prepared(config) for name in self.names}
        self._reference = self._prepared(config).requires_grad_(False) if with_reference else None
        # Weights of fp32 that are gathered in bf16 meet inputs of fp32 in every call, also where no step is taken.
        self._half = device.type if shards is not None and config.mixed_precision == "bf16" else None

    def denoiser(self, name: str) -> Denoiser:
        module = self._reference if name == REFERENCE else self._by_name[name]
        assert module is not None, "the members have no reference"
        return module if self._half is None else partial(_in_half, self._half, module)

    def release_reference(self) -> None:
        self._reference = None

    def compile(self) -> None:
        super().compile()
        if self._reference is not None:
            compile_blocks(self._reference)

    def succeed(self, name: str, config: RunConfig) -> None:
        for module in self._by_name.values():
            module.requires_grad_(False)
        self._by_name[name] = self._prepared(config)
        self.names = (name,)

    @property
    def modules(self) -> list[nn.Module]:
        return list(self._by_name.values())

    def parameters(self, name: str) -> dict[str, nn.Parameter]:
        return dict(self._by_name[name].named_parameters())


def make_members(
    config: RunConfig,
    family: Family,
    models: int,
    with_reference: bool,
    device: torch.device,
    shards: Shards | None = None,
) -> Members:
    """The members that an objective of ``models`` models trains, on ``device`` or in shards, equal to the base."""
    names = (PREFERRED, DISPREFERRED)[:models]
    if config.training_method == "lora":
        return LoRAMembers(config, family, names, device, shards)
    return FullMembers(config, family, names, device, with_reference, shards)


def _in_half(device_type: str, module: nn.Module, *args: Any, **kwargs: Any) -> Any:
    """A call under autocast."""
    with torch.autocast(device_type, torch.bfloat16):
        return module(*args, **kwargs)


def _prepared(family: Family, device: torch.device, config: RunConfig) -> Any:
    return checkpointing(family.load_denoiser().to(device), config)


def _cut(family: Family, shards: Shards) -> Callable[[RunConfig], Any]:
    """As :func:`_prepared`, in shards; the base is read once for all of them."""
    values = shards.values_of(family.load_denoiser)

    def cut(config: RunConfig) -> Any:
        return shards.cut(checkpointing(family.empty_denoiser(), config), values, config.mixed_precision)

    return cut
