"""How the keys of each family's files are named: `lora_names` of a LoRA's, the native layout of a whole model's."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from ..settings.facts import FAMILIES, FamilyFacts
from .flux2_blocks import flux2_layout
from .flux_blocks import flux_layout
from .krea2 import krea2_layout
from .mmdit import mmdit_layout
from .places import Layout, LayoutError
from .qwen_image import qwen_image_layout
from .unet import unet_layout
from .z_image import z_image_layout

LAYOUTS: Mapping[str, Layout] = {
    "unet": unet_layout,
    "mmdit": mmdit_layout,
    "flux": flux_layout,
    "flux2": flux2_layout,
    "qwen_image": qwen_image_layout,
    "z_image": z_image_layout,
    "krea2": krea2_layout,
}
# Modules under these names have no diffusers name that ComfyUI maps, and none of them is fused.
NATIVE_ONLY = (
    "distilled_guidance_layer.",
    "time_guidance_embed.",
    "double_stream_modulation_",
    "single_stream_modulation.",
)


@dataclass(frozen=True)
class FileFormat:
    """The names of one family's files: what its record says, and the function that gives its native names."""

    facts: FamilyFacts
    layout: Layout


def file_format(family: str) -> FileFormat:
    """The format of a family, by its name in the config.

    Raises:
        LayoutError: when the family is not known.
    """
    if family not in FAMILIES:
        raise LayoutError(f"`family` is `{family}`; known are {', '.join(FAMILIES)}")
    facts = FAMILIES[family]
    return FileFormat(facts, LAYOUTS[facts.layout])


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
    # Norms are no layers for a LoRA, and some are natively called otherwise.
    modules = [
        key.removesuffix(".weight")
        for key, place in places.items()
        if key.endswith(".weight") and place.key.endswith(".weight")
    ]
    if form.facts.lora_style == "peft":
        return {
            module: f"diffusion_model.{places[module + '.weight'].key.removesuffix('.weight')}"
            if module.startswith(NATIVE_ONLY)
            else f"transformer.{module}"
            for module in modules
        }
    if form.facts.lora_style == "kohya":
        return {module: f"lora_unet_{module.replace('.', '_')}" for module in modules}
    return {
        module: f"lora_unet_{places[module + '.weight'].key.removesuffix('.weight').replace('.', '_')}"
        for module in modules
    }
