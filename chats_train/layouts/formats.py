"""How the keys of each family's files are named: `lora_names` of a LoRA's, the native layout of a whole model's."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from ..settings.facts import FAMILIES, FamilyFacts
from .flux_blocks import flux_layout
from .mmdit import mmdit_layout
from .places import Layout, LayoutError
from .unet import unet_layout

LAYOUTS: Mapping[str, Layout] = {"unet": unet_layout, "mmdit": mmdit_layout, "flux": flux_layout}


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
    modules = [key.removesuffix(".weight") for key in places if key.endswith(".weight")]
    if form.facts.lora_style == "peft":
        return {module: f"transformer.{module}" for module in modules}
    if form.facts.lora_style == "kohya":
        return {module: f"lora_unet_{module.replace('.', '_')}" for module in modules}
    return {
        module: f"lora_unet_{places[module + '.weight'].key.removesuffix('.weight').replace('.', '_')}"
        for module in modules
    }
