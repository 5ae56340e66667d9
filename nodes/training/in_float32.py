"""A loaded MODEL that computes in float32 for a while, with the weights that it has: finite differences in half
precision are lost in its rounding, or so large that the network bends."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

CASTS = "comfy_cast_weights"
HALVES = (torch.float16, torch.bfloat16)


@contextmanager
def in_float32(model: Any) -> Iterator[None]:
    """Within the block, ComfyUI's layers cast their weight at each use, and what stands outside of such layers is an
    equal copy; afterwards all is as before, the weights the same objects.

    Args:
        model: ComfyUI's BaseModel.
    """
    dtype, products = model.manual_cast_dtype, torch.backends.cuda.matmul.allow_tf32
    convolutions = torch.backends.cudnn.allow_tf32
    modules = list(model.diffusion_model.modules())
    casting = [(module, vars(module).get(CASTS)) for module in modules if hasattr(module, CASTS)]
    replaced: list[tuple[dict[str, Any], str, Any]] = []
    try:
        model.manual_cast_dtype = torch.float32
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
        for module, _ in casting:
            setattr(module, CASTS, True)
        for module in modules:
            held = [module._buffers] if hasattr(module, CASTS) else [module._buffers, module._parameters]
            for tensors in held:
                replaced += _in_float32(tensors)
        yield
    finally:
        for tensors, name, value in replaced:
            tensors[name] = value
        for module, before in casting:
            if before is None:
                delattr(module, CASTS)
            else:
                setattr(module, CASTS, before)
        model.manual_cast_dtype = dtype
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = products, convolutions


def _in_float32(tensors: dict[str, Any]) -> Iterator[tuple[dict[str, Any], str, Any]]:
    """Replaces those in half precision; what stood where."""
    for name, value in tensors.items():
        if value is not None and value.dtype in HALVES:
            copied = value.float()
            tensors[name] = nn.Parameter(copied, requires_grad=False) if isinstance(value, nn.Parameter) else copied
            yield tensors, name, value
