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
    To be called outside of inference mode.
    """
    for module in network.modules():
        for name, weight in module._parameters.items():
            if weight is not None and weight.is_inference() and weight.device == device:
                module._parameters[name] = nn.Parameter(weight.clone(), requires_grad=False)
        for name, buffer in module._buffers.items():
            if buffer is not None and buffer.is_inference() and buffer.device == device:
                module._buffers[name] = buffer.clone()


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
