"""Precisions by the names that settings and options give them."""

from __future__ import annotations

import torch

TORCH_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def forward_dtype(mixed_precision: str) -> torch.dtype:
    """The precision of a forward pass by the setting `mixed_precision`, where `no` is fp32."""
    return TORCH_DTYPES["fp32" if mixed_precision == "no" else mixed_precision]
