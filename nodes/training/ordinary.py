"""Tensors that a graph can save. ComfyUI runs nodes, its loaders among them, in inference mode, whose tensors autograd
refuses."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn


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
                module._parameters[name] = nn.Parameter(weight.to(computed, copy=True), requires_grad=False)
        for name, buffer in module._buffers.items():
            if buffer is not None and buffer.is_inference() and buffer.device == device:
                module._buffers[name] = buffer.clone()


def _dtype(module: nn.Module, name: str, weight: Tensor) -> torch.dtype:
    """What a weight is multiplied in; a quantised one, or one that is cast at each use, stays."""
    stays = getattr(module, "comfy_cast_weights", False) or hasattr(weight, "_qdata") or weight.dtype.itemsize == 1
    asked = getattr(module, f"{name}_comfy_model_dtype", None)
    return weight.dtype if stays or asked is None else asked


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
