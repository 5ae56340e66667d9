"""Gradient checkpointing of a network's blocks that is right where they change tensors in place.

Between forward and backward nothing is kept but each block's inputs; the backward pass runs a block again and goes
through it. torch's own checkpointing is of no use here: some networks of ComfyUI's change tensors in place that the
graph has saved, which raises, and under any hook on saved tensors is wrong without a word. So each block runs on copies
of its inputs, and what is saved within it is copied when something changes it.

Tensors may come to a block inside of lists, dicts and dataclasses: those are opened, since a tensor that is not seen
gets no gradient.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

CONTAINERS = (nn.ModuleList, nn.ModuleDict, nn.Sequential)


def blocks_of(network: nn.Module) -> list[nn.Module]:
    """The modules that are checkpointed, each weight in at most one: the first below the root, where lists of modules,
    and modules that hold such lists, are gone into."""
    found = []
    for child in network.children():
        if isinstance(child, CONTAINERS) or any(isinstance(inner, nn.ModuleList) for inner in child.children()):
            found += blocks_of(child)
        elif any(True for _ in child.parameters()):
            found.append(child)
    return found


@contextmanager
def checkpointed(blocks: Iterable[nn.Module], anchor: Tensor) -> Iterator[None]:
    """With each block checkpointed wherever gradients are asked for.

    Args:
        anchor: any tensor that requires a gradient: a block whose inputs need none may hold weights that do.
    """
    wrapped = list(blocks)
    try:
        for block in wrapped:
            block.forward = _checkpointed_forward(block.forward, anchor)
        yield
    finally:
        for block in wrapped:
            block.__dict__.pop("forward", None)


class _Block:
    """A block's own forward. Whether it changes saved tensors in place is seen when it is first gone through; None
    before. Care for that takes longer than all else in a small block."""

    def __init__(self, forward: Callable):
        self.forward, self.changes_saved = forward, None

    def care(self) -> Any:
        """What it is gone through in. Without it torch raises where a saved tensor was changed after all."""
        if self.changes_saved is False:
            return nullcontext()
        return torch.autograd.graph.allow_mutation_on_saved_tensors()


def _checkpointed_forward(forward: Callable, anchor: Tensor) -> Callable:
    block = _Block(forward)

    def run(*args: Any, **kwargs: Any) -> Any:
        if not torch.is_grad_enabled():
            return forward(*args, **kwargs)
        leaves: list[Tensor] = []
        call = _Call(block, take_apart((args, kwargs), leaves))
        outputs = _Checkpoint.apply(call, anchor, *leaves)
        return put_together(call.made, outputs)

    return run


class _Call:
    """A block's forward on the tensors of its arguments. ``made`` is what it returned, taken apart."""

    def __init__(self, block: _Block, given: Any):
        self.block, self.given, self.made = block, given, None

    def __call__(self, leaves: Iterable[Tensor]) -> tuple[Tensor, ...]:
        args, kwargs = put_together(self.given, tuple(leaves))
        outputs: list[Tensor] = []
        self.made = take_apart(self.block.forward(*args, **kwargs), outputs)
        return tuple(outputs)


class _Checkpoint(torch.autograd.Function):
    """The graph of one block, which is there in the backward pass alone."""

    @staticmethod
    def forward(ctx: Any, call: _Call, anchor: Tensor, *leaves: Tensor) -> tuple[Tensor, ...]:
        ctx.call = call
        ctx.save_for_backward(*leaves)
        with torch.no_grad():
            return call(leaf.detach().clone() for leaf in leaves)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        needed = ctx.needs_input_grad[2:]
        block = ctx.call.block
        with torch.enable_grad(), block.care() as changes:
            leaves = [
                leaf.detach().clone().requires_grad_(need) for leaf, need in zip(ctx.saved_tensors, needed, strict=True)
            ]
            # A leaf itself may not be changed in place, what was computed from it may.
            outputs = ctx.call(leaf * 1 if need else leaf for leaf, need in zip(leaves, needed, strict=True))
            if changes is not None:
                # Its copies of what was saved are there as long as the graph is.
                block.changes_saved = bool(changes.cloned)
            reached = [
                (output, gradient)
                for output, gradient in zip(outputs, gradients, strict=True)
                if output.requires_grad and gradient is not None
            ]
            torch.autograd.backward([output for output, _ in reached], [gradient for _, gradient in reached])
        return None, None, *(leaf.grad for leaf in leaves)


class _Leaf(NamedTuple):
    """The place of a tensor in what was taken apart."""

    place: int


class _Opened(NamedTuple):
    """A dataclass that was taken apart: one of the kind, and its fields."""

    original: Any
    fields: dict[str, Any]


def take_apart(value: Any, leaves: list[Tensor]) -> Any:
    """``value`` with a mark in the place of each tensor, which is added to ``leaves``."""
    if isinstance(value, Tensor):
        leaves.append(value)
        return _Leaf(len(leaves) - 1)
    if isinstance(value, dict):
        return {key: take_apart(each, leaves) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return _sequence(value, [take_apart(each, leaves) for each in value])
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return _Opened(value, {key: take_apart(each, leaves) for key, each in vars(value).items()})
    return value


def put_together(structure: Any, leaves: tuple[Tensor, ...]) -> Any:
    """The inverse of :func:`take_apart`, with other tensors."""
    if isinstance(structure, _Leaf):
        return leaves[structure.place]
    if isinstance(structure, _Opened):
        made = object.__new__(type(structure.original))
        for key, each in structure.fields.items():
            object.__setattr__(made, key, put_together(each, leaves))  # it may be frozen
        return made
    if isinstance(structure, dict):
        return {key: put_together(each, leaves) for key, each in structure.items()}
    if isinstance(structure, list | tuple):
        return _sequence(structure, [put_together(each, leaves) for each in structure])
    return structure


def _sequence(like: Any, values: list) -> Any:
    """A list, tuple or named tuple of the kind of ``like``."""
    return type(like)(*values) if hasattr(like, "_fields") else type(like)(values)
