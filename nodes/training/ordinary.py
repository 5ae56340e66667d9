"""Tensors that a graph can save. ComfyUI runs nodes, its loaders among them, in inference mode, whose tensors autograd
refuses."""

from __future__ import annotations

import copy
import functools
from typing import Any

import torch
from torch import Tensor, nn


class Weights:
    """The weights of a loaded network, as autograd takes them between :meth:`prepare` and :meth:`restore`.

    A class of weights may make all that is computed with it tensors of that class, as that of GGUF files does, and its
    owner take them back to plain ones in a way that fails where torch watches what is changed in place. Such weights
    become of a subclass that leaves no heirs.

    Args:
        device: where the network computes.
    """

    def __init__(self, network: nn.Module, device: torch.device):
        self.network, self.device = network, device

    def prepare(self) -> None:
        """To be called outside of inference mode."""
        make_ordinary(self.network, self.device)
        for weight in self.network.parameters():
            if _has_heirs(type(weight)):
                weight.__class__ = _without_heirs(type(weight))

    def restore(self) -> None:
        """Gives the weights the classes that they had."""
        for weight in self.network.parameters():
            weight.__class__ = getattr(type(weight), "before", type(weight))


def _has_heirs(kind: Any) -> bool:
    """Whether it is a subclass of tensors with torch's own rule, by which results are of the subclass."""
    return kind is not Tensor and _rule(kind) is _rule(Tensor)


def _rule(kind: Any) -> Any:
    return getattr(kind.__torch_function__, "__func__", None)


@functools.cache
def _without_heirs(kind: type) -> type:
    return type(kind.__name__, (kind,), {"__torch_function__": torch._C._disabled_torch_function_impl, "before": kind})


def make_ordinary(network: nn.Module, device: torch.device) -> None:
    """Replaces the network's inference tensors, one by one, by equal ones outside of inference mode; they stay.

    Only those on ``device``, where it computes: what comes from elsewhere is copied at each use, and may be pinned.
    Weights that stay as their file has them, which ComfyUI does where it has started with dynamic VRAM, are brought to
    what the network computes in. To be called outside of inference mode.
    """
    for module in network.modules():
        for name, weight in module._parameters.items():
            if weight is None or weight.device != device:
                continue
            computed = _dtype(module, name, weight)
            if weight.is_inference() or weight.dtype != computed:
                copied = _copied(weight) if weight.dtype == computed else weight.to(computed)
                module._parameters[name] = nn.Parameter(copied, requires_grad=False)
        for name, buffer in module._buffers.items():
            if buffer is not None and buffer.is_inference() and buffer.device == device:
                module._buffers[name] = buffer.clone()


def _dtype(module: nn.Module, name: str, weight: Tensor) -> torch.dtype:
    """What a weight is multiplied in; a quantised one, or one that is cast at each use, stays."""
    is_plain = type(weight) is nn.Parameter and weight.dtype.itemsize > 1
    asked = getattr(module, f"{name}_comfy_model_dtype", None)
    return (
        asked if is_plain and asked is not None and not getattr(module, "comfy_cast_weights", False) else weight.dtype
    )


def _copied(weight: Tensor) -> Tensor:
    """A copy, also of a class of tensors whose own `clone` makes none."""
    copied = weight.clone()
    if copied.is_inference():
        copied = Tensor.clone(weight)
        vars(copied).update(vars(weight))
    return copied


def ordinary(value: Any) -> Any:
    """A copy of tensors in lists, dicts and ComfyUI's encoded conditions; anything else as it is."""
    if isinstance(value, Tensor):
        return value.detach().clone()
    if isinstance(value, dict):
        return {key: ordinary(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(ordinary(each) for each in value)
    if hasattr(value, "cond") and hasattr(value, "process_cond"):
        condition = copy.copy(value)
        condition.cond = ordinary(value.cond)
        return condition
    return value
