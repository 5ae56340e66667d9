"""A frozen base in 4 or 8 bits, for LoRAs on models that a card would not hold otherwise.

What is quantized are the linear layers of the blocks that repeat, which is nearly all of a large model; the layers at
its ends stay as they are. bitsandbytes holds the weights and multiplies by them, and PEFT's adapters go on top.
"""

from __future__ import annotations

import re
from typing import Any, Literal

import torch
from torch import nn

from ..support.errors import UserError

Quantization = Literal["nf4", "int8"]
# A layer's name has the number of its block in it.
IN_BLOCKS = re.compile(r"(^|.*\.)\d+\..+")
# Bytes of a weight: 4 bits and an fp32 scale for each 64, or 8 bits, whose scale for each row is next to nothing.
QUANTIZED_BYTES = {"nf4": 0.5 + 4 / 64, "int8": 1.0}


def quantize_blocks(module: Any, kind: Quantization, device: torch.device) -> None:
    """Quantizes a model's blocks in place, a layer at a time, and moves those layers to ``device``.

    Raises:
        UserError: when bitsandbytes is missing.
    """
    try:
        import bitsandbytes
    except ImportError as error:
        raise UserError(
            f"`base_quantization` is {kind}, which needs bitsandbytes; `pip install bitsandbytes`, or set it to none"
        ) from error
    for name, layer in list(module.named_modules()):
        if not isinstance(layer, nn.Linear) or not IN_BLOCKS.fullmatch(name):
            continue
        parent, _, attribute = name.rpartition(".")
        setattr(module.get_submodule(parent), attribute, _quantized(bitsandbytes, layer, kind).to(device))


def _quantized(bitsandbytes: Any, layer: nn.Linear, kind: Quantization) -> Any:
    sizes, options = (layer.in_features, layer.out_features), {"bias": layer.bias is not None}
    weight = layer.weight.detach()
    if kind == "nf4":
        made = bitsandbytes.nn.Linear4bit(*sizes, **options, quant_type="nf4", compute_dtype=weight.dtype)
        made.weight = bitsandbytes.nn.Params4bit(weight, requires_grad=False, quant_type="nf4", module=made)
    else:
        made = bitsandbytes.nn.Linear8bitLt(*sizes, **options, has_fp16_weights=False)
        made.weight = bitsandbytes.nn.Int8Params(weight, requires_grad=False, has_fp16_weights=False)
    if layer.bias is not None:
        made.bias = nn.Parameter(layer.bias.detach(), requires_grad=False)
    return made
