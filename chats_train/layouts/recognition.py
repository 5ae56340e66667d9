"""What a file's tensors are, from their names and shapes: a denoiser of which family, or a LoRA for which."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from ..settings.facts import FAMILIES, FamilyFacts
from ..support.tensor_files import Tensors

DOWN_ENDINGS = (".lora_down.weight", ".lora_A.weight")
# Plain differences beside the factors: of a weight (a norm's) and of a bias.
DIFF_ENDINGS = (".diff", ".diff_b")
# UNets tell their family by the width of the text that they attend to. These are known, but have no family here.
OTHER_UNETS = {1024: "SD2", 1280: "SDXL refiner"}

KeyLayout = Literal["native", "diffusers"]
UNET_BEGINNINGS: tuple[tuple[str, KeyLayout], ...] = (("input_blocks.", "native"), ("down_blocks.", "diffusers"))


@dataclass(frozen=True)
class DenoiserKind:
    """What a denoiser is.

    ``words`` are for people, ``family`` is its name in the config where it has one, ``layout`` that of its keys.
    """

    words: str
    family: str | None
    layout: KeyLayout

    def __str__(self) -> str:
        return f"{self.words} ({self.layout} layout)"


def is_lora(tensors: Iterable[str]) -> bool:
    """Whether a file changes a model rather than being one."""
    return any(key.endswith((*DOWN_ENDINGS, *DIFF_ENDINGS)) for key in tensors)


def denoiser_kind(tensors: Tensors) -> DenoiserKind | None:
    """What a denoiser is by its own keys, prefix removed; None for one that is not known here."""
    for facts in FAMILIES.values():
        if (layout := _marked(facts, tensors)) is not None:
            return DenoiserKind(_title(facts, tensors, layout), facts.name, layout)
    for beginning, layout in UNET_BEGINNINGS:
        keys = (key for key in tensors if key.startswith(beginning) and key.endswith("attn2.to_k.weight"))
        if (key := next(keys, None)) is not None:
            width = tensors[key].shape[-1]
            family = _unet_of(width)
            return DenoiserKind(unet_title(width, "UNet"), family.name if family else None, layout)
    return None


def unet_title(text_width: int, otherwise: str) -> str:
    """What a UNet under text of this width is called; one that is not known begins with ``otherwise``."""
    family = _unet_of(text_width)
    return family.title if family else OTHER_UNETS.get(text_width, f"{otherwise} with text of width {text_width}")


def lora_title(tensors: Tensors) -> str:
    """What a LoRA is for, in words."""
    names = [key.replace(".", "_") for key in tensors]
    marked = [facts for facts in FAMILIES.values() if any(mark in name for name in names for mark in facts.marks.lora)]
    if marked:
        # A family's marks may hold of its relatives too; the one with more to go by is meant.
        return max(marked, key=lambda facts: len(facts.marks.diffusers)).title
    downs = {key: info for key, info in tensors.items() if key.endswith(DOWN_ENDINGS)}
    widths = [info.shape[1] for key, info in downs.items() if "attn2_to_k" in key.replace(".", "_")]
    if widths:
        return unet_title(widths[0], "a UNet")
    blocks = any("transformer_blocks_" in name and "attentions" not in name for name in names)
    return "SD3 or Flux" if blocks else "a model not known here"


def _marked(facts: FamilyFacts, tensors: Tensors) -> KeyLayout | None:
    """The layout in which a denoiser bears the marks of a family."""
    marks = facts.marks
    if any(key.startswith(marks.not_with) for key in tensors):
        return None
    if marks.native and all(key in tensors for key in marks.native):
        return "native"
    if marks.diffusers and all(key in tensors for key in marks.diffusers):
        return "diffusers"
    return None


def _title(facts: FamilyFacts, tensors: Tensors, layout: KeyLayout) -> str:
    if layout == "native":
        for mark, title in facts.marks.variants.items():
            if mark in tensors or not mark:
                return title
    return facts.title


def _unet_of(text_width: int) -> FamilyFacts | None:
    return next((facts for facts in FAMILIES.values() if facts.marks.text_width == text_width), None)
