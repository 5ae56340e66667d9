"""What trains: the preferred and the dispreferred model, and the frozen reference beside them.

Two methods. ``full``: two copies of the denoiser, and a third as the reference. ``lora``: ONE denoiser with two
adapters, which is the reference while both are off.
"""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from chats.pair import Member

from ..families import Denoiser, Family
from ..settings.config import RunConfig
from ..support.errors import UserError
from .checkpoint import RESUME

PREFERRED: Member = "preferred"
DISPREFERRED: Member = "dispreferred"


class Members(ABC):
    """The models of a run. Members and reference are called in any order: each call computes with its own weights.

    Attributes:
        names: the members that train: both, or the preferred alone for an objective of one model.
        one_graph: whether only one graph may be alive at a time: it is then backpropagated before another model is
            called.
    """

    def __init__(self, names: Iterable[str], one_graph: bool):
        self.names, self.one_graph = tuple(names), one_graph

    @abstractmethod
    def denoiser(self, name: str) -> Denoiser:
        """A member."""

    @abstractmethod
    def reference(self) -> Denoiser:
        """The frozen base, to be called without gradients."""

    @abstractmethod
    def succeed(self, name: str, config: RunConfig) -> None:
        """Freezes what trains now and puts one more model, equal to the base, to train in its place."""

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
            parameter.copy_(state[name])


class FullMembers(Members):
    """Whole models, each of its own; fp32 masters, or bf16 to be updated with stochastic rounding."""

    def __init__(
        self, config: RunConfig, family: Family, names: Iterable[str], device: torch.device, with_reference: bool
    ):
        super().__init__(names, one_graph=config.memory == "low")
        self._prepared = partial(_prepared, family, device)
        self._by_name = {name: self._prepared(config) for name in self.names}
        self._reference = self._prepared(config).requires_grad_(False) if with_reference else None

    def denoiser(self, name: str) -> Denoiser:
        return self._by_name[name]

    def reference(self) -> Denoiser:
        assert self._reference is not None, "the members were made without a reference"
        return self._reference

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
    """Two adapters on one frozen denoiser (PEFT), which is switched at each call.

    With gradient checkpointing the backward pass computes activations anew with whichever adapter is on then
    (https://github.com/huggingface/peft/issues/2832): hence one graph at a time there.
    """

    def __init__(self, config: RunConfig, family: Family, names: Iterable[str], device: torch.device):
        super().__init__(names, one_graph=config.memory == "low" or config.gradient_checkpointing)
        self.module = _prepared(family, torch.device("cpu"), config).requires_grad_(False)
        self._default_targets = family.facts.lora_targets
        self._add_adapters(config, self.names)
        self.module.to(device)
        self._train_all()

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
        self._trained = list(self.named_parameters().values())
        for parameter in self._trained:
            parameter.data = parameter.data.float()

    def denoiser(self, name: str) -> Denoiser:
        return partial(self._call, name)

    def reference(self) -> Denoiser:
        return partial(self._call, None)

    def _call(self, adapter: str | None, *args: Any, **kwargs: Any) -> Any:
        """The module under one adapter, or under none."""
        if adapter is None:
            self.module.disable_adapters()
        else:
            self.module.enable_adapters()
            self.module.set_adapter(adapter)
        # PEFT freezes what is off, whose graph may be alive (https://github.com/huggingface/peft/issues/2759).
        for parameter in self._trained:
            parameter.requires_grad_()
        return self.module(*args, **kwargs)

    @property
    def modules(self) -> list[nn.Module]:
        return [self.module]

    def parameters(self, name: str) -> dict[str, nn.Parameter]:
        return {
            key: parameter for key, parameter in self.module.named_parameters() if f".{name}." in key and "lora_" in key
        }


def make_members(config: RunConfig, family: Family, models: int, with_reference: bool, device: torch.device) -> Members:
    """The members that an objective of ``models`` models trains, on ``device``, equal to the base."""
    names = (PREFERRED, DISPREFERRED)[:models]
    if config.training_method == "lora":
        return LoRAMembers(config, family, names, device)
    return FullMembers(config, family, names, device, with_reference)


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


def _prepared(family: Family, device: torch.device, config: RunConfig) -> Any:
    module: Any = family.load_denoiser().to(device)
    if config.gradient_checkpointing:
        module.enable_gradient_checkpointing()
    return module
