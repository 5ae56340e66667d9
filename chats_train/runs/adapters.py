"""Members as adapters on one frozen denoiser (PEFT)."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from ..families import Denoiser, Family
from ..settings.config import RunConfig
from ..sharding.modules import Shards
from ..support.errors import UserError
from .members import REFERENCE, Members, checkpointing
from .quantization import quantize_blocks


class LoRAMembers(Members):
    """Two adapters on one frozen denoiser (PEFT). PEFT's own are off; a hook on each layer adds those that are called
    for, each to its share of the rows.

    A graph that is kept for checkpointing computes activations anew with whichever adapters are on in the backward pass
    (https://github.com/huggingface/peft/issues/2832). Members whose graphs are alive at once are therefore called as
    one, and what is on stays on until the next call.
    """

    def __init__(
        self,
        config: RunConfig,
        family: Family,
        names: Iterable[str],
        device: torch.device,
        shards: Shards | None = None,
    ):
        super().__init__(names, one_graph=config.memory == "low")
        self._default_targets = family.facts.lora_targets
        self._on: tuple[str, ...] = (REFERENCE,)
        self._hooks: list[RemovableHandle] = []
        self._trained: list[nn.Parameter] = []
        if shards is None:
            base: Any = family.load_denoiser()
            if config.base_quantization != "none":
                quantize_blocks(base.requires_grad_(False), config.base_quantization, device)
            self._adapt(config, base).to(device)
        else:
            # The base lies in shards, the adapters are whole in each process.
            values = shards.values_of(lambda: self._adapt(config, family.load_denoiser()))
            module = self._adapt(config, family.empty_denoiser())
            shards.cut(module, values, config.mixed_precision, whole=self._trained)
            self._trained = list(self.named_parameters().values())
        loose = family.facts.loose_layers
        if loose and any(name.startswith(loose) for name in self.parameters(self.names[0])):
            self.one_graph = True

    def _adapt(self, config: RunConfig, module: Any) -> Any:
        """Takes a denoiser for the base, with new adapters on it."""
        self.module: Any = checkpointing(module, config).requires_grad_(False)
        self._add_adapters(config, self.names)
        self._train_all()
        return self.module

    def succeed(self, name: str, config: RunConfig) -> None:
        for parameter in self._trained:
            parameter.requires_grad_(False)
        device = next(self.module.parameters()).device
        self.names = (name,)
        self._add_adapters(config, self.names)
        self.module.to(device)
        self._train_all()

    def _add_adapters(self, config: RunConfig, names: Iterable[str]) -> None:
        from peft import LoraConfig

        targets = list(config.network_target_modules or self._default_targets)
        settings = LoraConfig(
            r=config.network_rank, lora_alpha=config.network_alpha, target_modules=targets, lora_dropout=0.0
        )
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Already found a `peft_config`")  # the second adapter is meant
            torch.manual_seed(config.seed)  # the factors' first values
            for name in names:
                try:
                    self.module.add_adapter(settings, adapter_name=name)
                except ValueError as error:
                    raise UserError(
                        f"`network_target_modules` is {targets}, which names no layer of the base; see `inspect`"
                    ) from error

    def _train_all(self) -> None:
        """Readies what trains: in fp32, whatever the base is in."""
        from peft.tuners.lora import LoraLayer

        self.module.disable_adapters()  # which freezes them too
        self._trained = list(self.named_parameters().values())
        for parameter in self._trained:
            parameter.data = parameter.data.float()
            parameter.requires_grad_()
        for hook in self._hooks:
            hook.remove()
        layers = [layer for layer in self.module.modules() if isinstance(layer, LoraLayer)]
        self._hooks = [layer.register_forward_hook(self._add) for layer in layers]

    def denoiser(self, name: str) -> Denoiser:
        return partial(self._call, (name,))

    def release_reference(self) -> None:
        """Nothing: the adapters are on it."""

    def joint(self, names: Sequence[str]) -> Denoiser:
        return partial(self._call, tuple(names) if len(set(names)) > 1 else (names[0],))

    def _call(self, names: tuple[str, ...], *args: Any, **kwargs: Any) -> Any:
        """The module under one adapter or none, or under one for each share of the rows."""
        self._on = names
        return self.module(*args, **kwargs)

    def _add(self, layer: Any, inputs: tuple[Tensor], result: Tensor) -> Tensor:
        """A layer's result with what is on, as PEFT adds it."""
        rows, count = inputs[0], len(self._on)
        assert len(rows) % count == 0, f"{len(rows)} rows are not one share for each of {self._on}"
        shares = [
            share + _adapted(layer, name, own) if name in layer.lora_A else share
            for name, share, own in zip(self._on, result.chunk(count), rows.chunk(count), strict=True)
        ]
        return (torch.cat(shares) if count > 1 else shares[0]).to(result.dtype)

    @property
    def modules(self) -> list[nn.Module]:
        return [self.module]

    def parameters(self, name: str) -> dict[str, nn.Parameter]:
        return {
            key: parameter for key, parameter in self.module.named_parameters() if f".{name}." in key and "lora_" in key
        }


def _adapted(layer: Any, name: str, rows: Tensor) -> Tensor:
    """What one adapter of a layer adds for these inputs."""
    down, up, scaling = layer.lora_A[name], layer.lora_B[name], layer.scaling[name]
    # Autocast brings rows and weights together itself: to widen rows before it narrows them would cost two passes over
    # them in each layer.
    if not torch.is_autocast_enabled(rows.device.type):
        rows = rows.to(down.weight.dtype)
    added = up(down(rows))
    return added if scaling == 1 else added * scaling


Weight = TypeVar("Weight", bound=Tensor)


def adapter_weights(state: Mapping[str, Weight], member: str) -> dict[str, Weight]:
    """A member's weights in a state of :meth:`Members.state`, by the names that export takes (without the adapter's
    name)."""
    prefix = f"{member}."
    return {
        key.removeprefix(prefix).replace(f".{member}.", "."): value
        for key, value in state.items()
        if key.startswith(prefix)
    }
