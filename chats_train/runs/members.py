"""What trains: the preferred and the dispreferred model, and the frozen reference beside them.

Two methods. ``full``: two copies of the denoiser, and a third as the reference. ``lora``: ONE denoiser with two
adapters, which is the reference while both are off.
"""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from chats.pair import Member

from ..families import Denoiser, Family
from ..settings.config import RunConfig
from ..sharding.modules import Shards
from ..sharding.tensors import fill
from ..support.errors import UserError
from .checkpoint import RESUME
from .quantization import quantize_blocks

PREFERRED: Member = "preferred"
DISPREFERRED: Member = "dispreferred"
# No member: the frozen base.
REFERENCE = "reference"


class Members(ABC):
    """The models of a run. Members and reference are called in any order: each call computes with its own weights.

    Attributes:
        names: the members that train: both, or the preferred alone for an objective of one model.
        one_graph: whether one graph is alive at a time, each side being asked on its own: where memory is low, and
            where members cannot share a pass.
    """

    def __init__(self, names: Iterable[str], one_graph: bool):
        self.names, self.one_graph = tuple(names), one_graph

    @abstractmethod
    def denoiser(self, name: str) -> Denoiser:
        """A member, or ``REFERENCE``."""

    def reference(self) -> Denoiser:
        """The frozen base, to be called without gradients."""
        return self.denoiser(REFERENCE)

    @abstractmethod
    def release_reference(self) -> None:
        """Lets go of what is there for the reference alone; it is not asked again."""

    def joint(self, names: Sequence[str]) -> Denoiser | None:
        """One model that is each of these on its share of a batch's rows, all equally many and in this order; None
        where they cannot be called as one."""
        return self.denoiser(names[0]) if len(set(names)) == 1 else None

    @abstractmethod
    def succeed(self, name: str, config: RunConfig) -> None:
        """Freezes what trains now and puts one more model, equal to the base, to train in its place."""

    def compile(self) -> None:
        """Has every model's blocks compiled, the reference's too, each when it is first called."""
        for module in self.modules:
            compile_blocks(module)

    @property
    @abstractmethod
    def modules(self) -> list[nn.Module]:
        """What holds the members' weights, each module once."""

    @abstractmethod
    def parameters(self, name: str) -> dict[str, nn.Parameter]:
        """What trains in a member, by name, always in the same order."""

    def named_parameters(self) -> dict[str, nn.Parameter]:
        """All that trains, as `<member>.<name>`."""
        return {
            f"{member}.{name}": parameter
            for member in self.names
            for name, parameter in self.parameters(member).items()
        }

    def state(self) -> dict[str, Tensor]:
        """Everything a checkpoint needs of the members, by :meth:`named_parameters`' names."""
        return {name: parameter.detach() for name, parameter in self.named_parameters().items()}

    @torch.no_grad()
    def load_state(self, state: dict[str, Tensor], way_out: str = RESUME.way_out) -> None:
        """Puts a checkpoint's weights in place; an error ends in ``way_out``.

        Raises:
            UserError: when they are not those of this run's members.
        """
        mine = self.named_parameters()
        shapes = [{name: tensor.shape for name, tensor in tensors.items()} for tensors in (state, mine)]
        if shapes[0] != shapes[1]:
            raise UserError(
                f"the checkpoint is of another model than this run; bring back the old settings, or {way_out}"
            )
        for name, parameter in mine.items():
            fill(parameter, state[name])


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
        self.module: Any = _checkpointing(module, config).requires_grad_(False)
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


def compile_blocks(module: Any) -> None:
    """torch.compile of a model's repeated blocks, one at a time and in place: blocks of one shape share what is
    compiled."""
    # Shapes of blocks, with and without a graph, for the first size of a batch and for any; beyond the limit torch says
    # so and stops compiling.
    torch._dynamo.config.recompile_limit = max(64, torch._dynamo.config.recompile_limit)
    kinds = module._repeated_blocks or module._no_split_modules
    for block in module.modules():
        if type(block).__name__ in kinds:
            block.compile()


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


def _in_half(device_type: str, module: nn.Module, *args: Any, **kwargs: Any) -> Any:
    """A call under autocast."""
    with torch.autocast(device_type, torch.bfloat16):
        return module(*args, **kwargs)


def _prepared(family: Family, device: torch.device, config: RunConfig) -> Any:
    return _checkpointing(family.load_denoiser().to(device), config)


def _cut(family: Family, shards: Shards) -> Callable[[RunConfig], Any]:
    """As :func:`_prepared`, in shards; the base is read once for all of them."""
    values = shards.values_of(family.load_denoiser)

    def cut(config: RunConfig) -> Any:
        return shards.cut(_checkpointing(family.empty_denoiser(), config), values, config.mixed_precision)

    return cut


def _checkpointing(module: Any, config: RunConfig) -> Any:
    if config.gradient_checkpointing:
        module.enable_gradient_checkpointing()
    return module
