"""The one set of LoRA names that ComfyUI maps for every model: `diffusion_model.` and the native name."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

# Flux's q and k norms are called `scale` in older ComfyUI and `weight` in newer; diffusers' names of them are mapped in
# both.
FLUX_NORM = re.compile(r"(double|single)_blocks\.(\d+)\.(?:(img|txt)_attn\.)?norm\.(query|key)_norm\.(?:scale|weight)")

# Those of Chroma's modulations too, and diffusers' names of them are mapped nowhere.
CHROMA_NORM = re.compile(r"distilled_guidance_layer\.norms\.\d+\.scale")


@dataclass(frozen=True)
class Carrier:
    """How one weight's difference goes into a LoRA file.

    ``factors``: `<name>.lora_up.weight`, `.lora_down.weight` and `.alpha`. ``difference``: one tensor of the weight's
    shape, `<name>`.
    """

    form: Literal["factors", "difference"]
    name: str


def carriers(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Carrier | None]:
    """The carrier of each weight; None for one that no ComfyUI would apply.

    ComfyUI maps a name to every tensor of a model, but it patches only those of modules without modules inside: a
    parameter of a block itself, such as SD3's table of positions, it would take and leave as it is.

    Args:
        shapes: the shape of each weight of one denoiser, by native key.
    """
    holders = {".".join(key.split(".")[:end]) for key in shapes for end in range(key.count("."))}
    return {key: None if key.rpartition(".")[0] in holders else _carrier(key, shapes) for key in shapes}


def _carrier(key: str, shapes: Mapping[str, tuple[int, ...]]) -> Carrier:
    module, _, end = key.rpartition(".")
    if norm := FLUX_NORM.fullmatch(key):
        return Carrier("difference", f"transformer.{_diffusers_norm(norm)}.diff")
    if CHROMA_NORM.fullmatch(key):
        return Carrier("difference", f"diffusion_model.{module}.diff")
    if end == "weight":
        name = f"diffusion_model.{module}"
        return Carrier("factors", name) if len(shapes[key]) > 1 else Carrier("difference", f"{name}.diff")
    if end == "bias" and f"{module}.weight" in shapes:
        return Carrier("difference", f"diffusion_model.{module}.diff_b")
    return Carrier("difference", f"diffusion_model.{key}.diff")


def _diffusers_norm(norm: re.Match[str]) -> str:
    block, number, stream, which = norm.groups()
    single = "single_" if block == "single" else ""
    return f"{single}transformer_blocks.{number}.attn.norm_{'added_' if stream == 'txt' else ''}{which[0]}"
