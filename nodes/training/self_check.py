"""Whether the gradient of a model's error is right, before the first step: against finite differences.

What it proves: the derivative of the error along the computed gradient, of each part of the network, is what the error
itself does when the weights go a little that way and a little back; and a layer without a gradient counts for nothing.
A gradient that lost a path through the network, or that a tensor changed in place has spoilt, fails that where it is
wrong by more than the tolerance in that direction. Checked on the factor `up` of the first LoRA, at the base, on one
pair; that of `down` is zero there, and it goes through the same layers.
"""

from __future__ import annotations

import itertools
import math

import torch
from torch import Tensor, nn

from ...chats.words import shown_error
from .errors import Question
from .memory import is_out_of_memory
from .steps import Steps

# Layers are taken together in this many parts of the network, from its beginning to its end.
PARTS = 3
# How far the weights go: so that the error changes by about this share. In half precision too little is lost in its
# rounding, and what is too much depends on the model (of deep ones that have learnt nothing, 0.004 is): one of several
# has to agree.
SHARES, HALF_PRECISION_SHARES = (1e-3,), (0.004, 0.001, 0.02, 0.06, 0.15)
# What the two may differ by: in half precision the differences are rough themselves.
TOLERANCE, HALF_PRECISION_TOLERANCE = 0.05, 0.2


class GradientIsWrong(ValueError):
    """A model whose gradients cannot be trusted; the sentence is for its user."""


def check_gradient(steps: Steps, question: Question, half_precision: bool) -> list[float]:
    """Compares, for each part, the derivative by the gradient with that by finite differences; their ratios.

    Takes about as long as training on three pairs, and leaves no gradient behind.

    Raises:
        GradientIsWrong: where they differ, or ComfyUI's code for the model cannot be differentiated.
    """
    shares, tolerance = (HALF_PRECISION_SHARES, HALF_PRECISION_TOLERANCE) if half_precision else (SHARES, TOLERANCE)
    first = steps.adapters.names[0]
    ups = [lora.up for lora in steps.adapters.loras[first].values()]
    parts = [part for part in _parts(ups) if part]
    steps.adapters.active = first
    try:
        value = _differentiate(steps, question)
        gradients = [[_gradient(up) / steps.scale for up in part] for part in parts]
    finally:
        steps.optimizer.zero_grad()
    ratios = [_unused(steps, question, ups, gradients)]
    for part, gradient in zip(parts, gradients, strict=True):
        found: list[float] = []
        for share in shares:
            found.append(_ratio(steps, question, part, gradient, share * value))
            if abs(found[-1] - 1) <= tolerance:
                break
        ratios.append(min(found, key=lambda ratio: abs(ratio - 1)))
    if not all(abs(ratio - 1) <= tolerance for ratio in ratios):
        shown = ", ".join(f"{ratio:.3f}" for ratio in ratios)
        raise GradientIsWrong(
            f"the gradients of this model are not right in ComfyUI (finite differences are {shown} of them: in layers "
            "without any, then from the first to the last), so nothing was trained; connect it without nodes that "
            "patch it, or another model"
        )
    return ratios


def settle(steps: Steps, question: Question) -> None:
    """One pass there and back whose gradient is thrown away, before a run begins or goes on: the first of a session may
    add in another order than those after it, and the check goes another way."""
    steps.adapters.active = steps.adapters.names[0]
    try:
        _differentiate(steps, question)
    finally:
        steps.optimizer.zero_grad()


def _differentiate(steps: Steps, question: Question) -> float:
    """Backpropagates the error; its value."""
    try:
        error = steps.errors.error(question)
        (error * steps.scale).sum().backward()
    except RuntimeError as reason:
        if is_out_of_memory(reason):
            raise
        if "backward" not in str(reason) and "inplace" not in str(reason) and "grad" not in str(reason):
            raise
        raise GradientIsWrong(
            f"ComfyUI's code for this model cannot be differentiated ({shown_error(reason)}), so nothing was trained; "
            "update ComfyUI, or connect another model"
        ) from reason
    return error.item()


def _ratio(steps: Steps, question: Question, part: list[nn.Parameter], gradient: list[Tensor], change: float) -> float:
    """By finite differences along a gradient, the derivative, as a share of what it is by the gradient."""
    squared = sum(each.double().square().sum().item() for each in gradient)
    if not math.isfinite(squared):
        return math.nan
    if squared == 0:
        return 1.0  # of layers that are not used, see below
    # Along the gradient the error changes by the squared norm for each unit.
    length = change / squared
    values = _moved(steps, question, part, gradient, length)
    return (values[0] - values[1]) / (2 * length * squared)


def _unused(steps: Steps, question: Question, ups: list[nn.Parameter], gradients: list[list[Tensor]]) -> float:
    """1 where nothing that the layers without a gradient add changes the error, as they are not used; else 0: their
    gradient is none of what it should be."""
    unused = [up for up, each in zip(ups, itertools.chain(*gradients), strict=True) if not each.any()]
    if not unused:
        return 1.0
    values = _moved(steps, question, unused, [torch.full_like(up, 0.1) for up in unused], 1.0)
    return float(values[0] == values[1])


@torch.no_grad()
def _moved(
    steps: Steps, question: Question, part: list[nn.Parameter], direction: list[Tensor], length: float
) -> list[float]:
    """The error with the weights, which are zero, moved there and back."""
    values = []
    try:
        for sign in (1, -1):
            for up, way in zip(part, direction, strict=True):
                up.copy_(sign * length * way)
            values.append(steps.errors.error(question).double().item())
    finally:
        for up in part:
            up.zero_()
    return values


def _parts(ups: list[nn.Parameter]) -> list[list[nn.Parameter]]:
    ends = [round(index * len(ups) / PARTS) for index in range(PARTS + 1)]
    return [ups[start:end] for start, end in itertools.pairwise(ends)]


def _gradient(up: nn.Parameter) -> Tensor:
    return torch.zeros_like(up) if up.grad is None else up.grad.detach().clone()
