"""What trains: the preferred and the dispreferred model, and the frozen reference beside them.

Two methods. ``full``: two copies of the denoiser, and a third as the reference. ``lora``: ONE denoiser with two
adapters, which is the reference while both are off. :mod:`.whole_members` and :mod:`.adapters` are they.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from chats.pair import Member

from ..families import Denoiser
from ..settings.config import RunConfig
from ..sharding.tensors import fill
from ..support.errors import UserError
from .checkpoint import RESUME

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


def compile_blocks(module: Any) -> None:
    """torch.compile of a model's repeated blocks, one at a time and in place: blocks of one shape share what is
    compiled."""
    # Shapes of blocks, with and without a graph, for the first size of a batch and for any; beyond the limit torch says
    # so and stops compiling.
    torch._dynamo.config.recompile_limit = max(64, torch._dynamo.config.recompile_limit)
    kinds = set(module._repeated_blocks or module._no_split_modules)
    for block in module.modules():
        # In shards a block is of a class made for that, below its own.
        if kinds & {kind.__name__ for kind in type(block).__mro__}:
            block.compile()


def checkpointing(module: Any, config: RunConfig) -> Any:
    """A denoiser, with gradient checkpointing where the run has it."""
    if config.gradient_checkpointing:
        module.enable_gradient_checkpointing()
    return module
