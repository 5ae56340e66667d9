"""Whether the gradient of a model's error is right, before the first step: against finite differences.

What it proves: the derivative of the error by the computed gradient, of each part of the network, is what the error
itself does when the weights go a little one way and a little back; and a layer without a gradient counts for nothing.
The ways are the gradient's own and a random one together. A gradient that lost a path through the network, or that a
tensor changed in place has spoilt, lacks something that often stands at right angles to it: along the gradient alone
one that is wrong by half passes. Checked on the factor `up` of the first LoRA, at the base, on one pair; that of
`down` is zero there, and it goes through the same layers.
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
# How far the weights go: so that the error changes by this share, each of so many ways.
SHARE, WAYS = 1e-4, 2
# In half precision too little is lost in its rounding, as is what a random way changes, and what is too much depends on
# the model (of deep ones that have learnt nothing, 0.004 is): along the gradient, one of several has to agree.
HALF_PRECISION_SHARES = (0.004, 0.001, 0.02, 0.06, 0.15)
# What the two may differ by: in half precision the differences are rough themselves.
TOLERANCE, HALF_PRECISION_TOLERANCE = 0.05, 0.2


class GradientIsWrong(ValueError):
    """A model whose gradients cannot be trusted; the sentence is for its user."""


def check_gradient(steps: Steps, question: Question, half_precision: bool) -> list[float]:
    """Compares, for each part, the derivative by the gradient with that by finite differences; their ratios.

    Takes about as long as training on three pairs, and leaves no gradient behind. In half precision a gradient that is
    wrong at right angles to itself is not seen.

    Raises:
        GradientIsWrong: where they differ, or ComfyUI's code for the model cannot be differentiated.
    """
    tolerance = HALF_PRECISION_TOLERANCE if half_precision else TOLERANCE
    first = steps.adapters.names[0]
    ups = [lora.up for lora in steps.adapters.loras[first].values()]
    parts = [part for part in _parts(ups) if part]
    steps.adapters.active = first
    try:
        value = _differentiate(steps, question)
        gradients = [[_gradient(up) / steps.scale for up in part] for part in parts]
    finally:
        steps.optimizer.zero_grad()
    ratios, generator = [_unused(steps, question, ups, gradients)], torch.Generator().manual_seed(0)
    for part, gradient in zip(parts, gradients, strict=True):
        if half_precision:
            ratios.append(_along(steps, question, part, gradient, value))
        else:
            found = [
                _ratio(steps, question, part, gradient, _way(gradient, generator), SHARE * value) for _ in range(WAYS)
            ]
            ratios.append(max(found, key=_apart))
    if not all(_apart(ratio) <= tolerance for ratio in ratios):
        shown = ", ".join(f"{ratio:.3f}" for ratio in ratios)
        raise GradientIsWrong(
            f"ComfyUI's gradients of this model are wrong (finite differences are {shown} of them, where 1 is right: "
            "in layers without any, then from the first to the last), so nothing was trained; connect `model` without "
            "nodes that patch it, update ComfyUI, or connect another model"
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


def _along(steps: Steps, question: Question, part: list[nn.Parameter], gradient: list[Tensor], value: float) -> float:
    """The ratio along the gradient, of the first length where it agrees, else of that where it does best."""
    found: list[float] = []
    for share in HALF_PRECISION_SHARES:
        found.append(_ratio(steps, question, part, gradient, gradient, share * value))
        if _apart(found[-1]) <= HALF_PRECISION_TOLERANCE:
            break
    return min(found, key=_apart)


def _way(gradient: list[Tensor], generator: torch.Generator) -> list[Tensor]:
    """A direction of which one half is the gradient's, and the other a random one that goes uphill with it: along both
    the error is expected to change about as much."""
    norm = math.sqrt(_product(gradient, gradient)) or 1.0
    random = [torch.randn(each.shape, generator=generator).to(each) for each in gradient]
    sign = math.copysign(1.0, _product(gradient, random))
    return [each / norm + sign * other for each, other in zip(gradient, random, strict=True)]


def _ratio(
    steps: Steps,
    question: Question,
    part: list[nn.Parameter],
    gradient: list[Tensor],
    way: list[Tensor],
    change: float,
) -> float:
    """By finite differences along a way, the derivative, as a share of what it is by the gradient.

    Args:
        change: of the error, that far the weights go by the gradient.
    """
    derivative = _product(gradient, way)
    if not math.isfinite(derivative):
        return math.nan
    if derivative == 0:
        return 1.0  # of layers that are not used, see below
    values = _moved(steps, question, part, way, change / derivative)
    return (values[0] - values[1]) / (2 * change)


def _apart(ratio: float) -> float:
    """How far a ratio is from one that is right; of no number, infinitely."""
    return math.inf if math.isnan(ratio) else abs(ratio - 1)


def _product(gradient: list[Tensor], way: list[Tensor]) -> float:
    return sum((each.double() * other.double()).sum().item() for each, other in zip(gradient, way, strict=True))


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
