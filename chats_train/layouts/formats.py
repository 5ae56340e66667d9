"""What each family's files are called: its native layout, its LoRA names, its name in `modelspec.*`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from .flux_blocks import flux_layout
from .mmdit import mmdit_layout
from .places import Layout, LayoutError
from .unet import unet_layout

# `kohya`: `lora_unet_<module, underscored>.lora_down/up.weight`; `peft`: `transformer.<module>.lora_A/B.weight`.
LoraStyle = Literal["kohya", "kohya_native", "peft"]


@dataclass(frozen=True)
class FileFormat:
    """The names of one family's files; ``architecture`` is a value of `modelspec.architecture`."""

    layout: Layout
    lora_style: LoraStyle
    architecture: str
    # An empty tensor of this name tells ComfyUI the prediction; only its SDXL looks for them.
    has_markers: bool = False


FORMATS = {
    "sd15": FileFormat(unet_layout, "kohya", "stable-diffusion-v1"),
    # sd-scripts names SDXL's LoRA modules after the native layout, so every user interface reads that.
    "sdxl": FileFormat(unet_layout, "kohya_native", "stable-diffusion-xl-v1-base", has_markers=True),
    "sd3": FileFormat(mmdit_layout, "peft", "stable-diffusion-3-medium"),
    "flux": FileFormat(flux_layout, "peft", "flux-1-dev"),
}


def file_format(family: str) -> FileFormat:
    """The format of a family, by its name in the config."""
    if family not in FORMATS:
        raise LayoutError(f"`family` is `{family}`; known are {', '.join(FORMATS)}")
    return FORMATS[family]


def lora_names(family: str, base_keys: Iterable[str]) -> Mapping[str, str]:
    """The name in a LoRA file of every module of the base that has a weight.

    Args:
        family: the family's name.
        base_keys: the denoiser's keys, in diffusers' names.

    Returns:
        module (diffusers' name) → name in the file, without `.lora_…`.
    """
    form = file_format(family)
    places = form.layout(base_keys)
    modules = [key.removesuffix(".weight") for key in places if key.endswith(".weight")]
    if form.lora_style == "peft":
        return {module: f"transformer.{module}" for module in modules}
    if form.lora_style == "kohya":
        return {module: f"lora_unet_{module.replace('.', '_')}" for module in modules}
    return {
        module: f"lora_unet_{places[module + '.weight'].key.removesuffix('.weight').replace('.', '_')}"
        for module in modules
    }
