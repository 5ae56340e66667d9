"""A loaded MODEL that computes in float32 for a while, with the weights that it has: finite differences in half
precision are lost in its rounding, or so large that the network bends."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

CASTS = "comfy_cast_weights"
# The second: layers that would multiply in eight bits.
FLAGS = (CASTS, "_full_precision_mm")
HALVES = (torch.float16, torch.bfloat16)


@contextmanager
def in_float32(model: Any) -> Iterator[None]:
    """Within the block, ComfyUI's layers cast their weight at each use, and what stands outside of such layers is an
    equal copy; afterwards all is as before, the weights the same objects.

    Args:
        model: ComfyUI's BaseModel.
    """
    dtype, modules = model.manual_cast_dtype, list(model.diffusion_model.modules())
    flags = [(module, flag, vars(module).get(flag)) for module in modules for flag in FLAGS if hasattr(module, flag)]
    replaced: list[tuple[dict[str, Any], str, Any]] = []
    try:
        model.manual_cast_dtype = torch.float32
        for module, flag, _ in flags:
            setattr(module, flag, True)
        for module in modules:
            held = [module._buffers] if hasattr(module, CASTS) else [module._buffers, module._parameters]
            for tensors in held:
                replaced += _in_float32(tensors)
        with _whole_products():
            yield
    finally:
        for tensors, name, value in replaced:
            tensors[name] = value
        for module, flag, before in flags:
            if before is None:
                delattr(module, flag)
            else:
                setattr(module, flag, before)
        model.manual_cast_dtype = dtype


@contextmanager
def _whole_products() -> Iterator[None]:
    """Without TF32, which rounds as half precision does, in products of matrices and in convolutions."""
    with _without_tf32(torch.backends.cuda.matmul), _without_tf32(torch.backends.cudnn):
        yield


@contextmanager
def _without_tf32(kind: Any) -> Iterator[None]:
    """Where it was set in torch's newer way it stays: torch refuses the older one then, and the newer one does not say
    whether a setting is its own or that of all kinds, as it has to be put back."""
    try:
        before = kind.allow_tf32
        kind.allow_tf32 = False
    except RuntimeError:
        yield
        return
    try:
        yield
    finally:
        kind.allow_tf32 = before


def _in_float32(tensors: dict[str, Any]) -> Iterator[tuple[dict[str, Any], str, Any]]:
    """Replaces those in half precision; what stood where."""
    for name, value in tensors.items():
        if value is not None and value.dtype in HALVES:
            copied = value.float()
            tensors[name] = nn.Parameter(copied, requires_grad=False) if isinstance(value, nn.Parameter) else copied
            yield tensors, name, value
