"""ComfyUI's scaled fp8: a weight in 8 bits, and beside it the scale that makes it the number that was meant.

Older files write `<layer>.scale_weight` and an empty `scaled_fp8`, newer ones `<layer>.weight_scale` and a JSON in
`<layer>.comfy_quant`. Both mean weight · scale. Without scales, fp8 weights are their own numbers.
"""

from __future__ import annotations

from torch import Tensor

from chats.words import shown

from ..support.tensor_files import Tensors
from .source_error import SourceError

FP8 = ("F8_E4M3", "F8_E5M2")
# Weights in fewer bits, packed or in blocks: nf4, nvfp4, mxfp8, int8 and their kin.
PACKED = ("I8", "U8", "I4", "U4", "F4", "F6_E2M3", "F6_E3M2", "F8_E8M0")
SCALES = (".scale_weight", ".weight_scale")
# Scales of a layer's input and the names of formats: they steer ComfyUI's matrix products and change no weight.
ASIDE = (".scale_input", ".input_scale", ".comfy_quant")
MARK = "scaled_fp8"


def scale_of(tensors: Tensors, where: str) -> dict[str, str]:
    """The key of the scale of each weight that has one.

    Args:
        tensors: the header of a file, or of one part of it.
        where: setting and file, for errors.

    Raises:
        SourceError: for weights that are quantized in another way.
    """
    for key, info in tensors.items():
        if info.dtype in PACKED and info.numbers and not key.endswith(ASIDE):
            raise SourceError(
                f"{where}: `{shown(key)}` is quantized ({info.dtype}); give the file in fp16, bf16 or fp32 that it was "
                "made from"
            )
    scales = {}
    for key, info in tensors.items():
        if ending := next((ending for ending in SCALES if key.endswith(ending)), None):
            weight = key.removesuffix(ending) + ".weight"
            if info.numbers != 1 or weight not in tensors:
                raise SourceError(
                    f"{where}: `{shown(key)}` is no scale of one weight as a whole, so the weights are quantized in a "
                    "way not known here; give the file in fp16, bf16 or fp32 that it was made from"
                )
            scales[weight] = key
    return scales


def is_weight(key: str) -> bool:
    """Whether a key is not one of those that belong to quantization."""
    return not key.endswith((*SCALES, *ASIDE)) and key.rpartition(".")[2] != MARK


def dequantized(weight: Tensor, scale: Tensor) -> Tensor:
    """The numbers that a scaled weight stands for, in fp32."""
    return weight.float() * scale.float()
