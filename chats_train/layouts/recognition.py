"""What a file's tensors are, from their names and shapes: a denoiser of which family, or a LoRA for which."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from ..settings.facts import FAMILIES, FamilyFacts
from ..support.tensor_files import Tensors

# Parts of a native checkpoint, by key prefix.
CHECKPOINT_PARTS = {
    "denoiser": ("model.diffusion_model.",),
    "VAE": ("first_stage_model.", "vae."),
    "text encoders": ("cond_stage_model.", "conditioner.", "text_encoders."),
}
# Keys that are a mark on the whole model, at the file's root or below the denoiser's prefix.
PREDICTION_MARKS = {"v_pred": "v-prediction", "ztsnr": "zero terminal SNR"}
EDM_MARKS = {"edm_vpred.sigma_max": "EDM v-prediction", "edm_mean": "EDM (Playground 2.5)"}
# A denoiser's first layer, and the channels that it takes where it makes pictures from prompts alone: of the latents,
# for Flux packed in fours.
FIRST_LAYERS = {
    "input_blocks.0.0.weight": 4,
    "conv_in.weight": 4,
    "x_embedder.proj.weight": 16,
    "pos_embed.proj.weight": 16,
    "img_in.weight": 64,
    "x_embedder.weight": 64,
    "all_x_embedder.2-1.weight": 64,
    "first.weight": 64,
}
# The latents of Flux.2, which has Flux.1's names, are packed by its VAE.
FLUX2_LAYERS = {"img_in.weight": 128, "x_embedder.weight": 128}
FLUX2 = "double_stream_modulation_img."
# What other channels are for.
INPUTS = {
    5: "a map of depth",
    7: "a small picture, to enlarge",
    8: "a picture, to edit",
    9: "a mask and a masked picture, to inpaint",
    128: "a picture, as Flux Canny and Depth do",
    384: "a mask and a masked picture, as Flux Fill does",
}
DOWN_ENDINGS = (
    ".lora_down.weight",
    ".lora_A.weight",
    ".lora_A.default.weight",
    ".lora.down.weight",
    "_lora.down.weight",
    ".lora_linear_layer.down.weight",
)
# diffusers' older forms are the last three.
OLDER_DOWN_ENDINGS = DOWN_ENDINGS[3:]
# Plain differences beside the factors: of a weight (a norm's) and of a bias.
DIFF_ENDINGS = (".diff", ".diff_b")
# Adapters that are no products of two factors, by the end of a key that each layer has.
ADAPTER_ENDINGS = {
    "LoHa": (".hada_w1_a",),
    "LoKr": (".lokr_w1", ".lokr_w1_a"),
    "OFT": (".oft_blocks", ".oft_diag", ".oft_R.weight"),
}
_OTHER_ADAPTERS = tuple(ending for endings in ADAPTER_ENDINGS.values() for ending in endings)
DORA_ENDINGS = (".dora_scale", ".lora_magnitude_vector", ".lora_magnitude_vector.weight")
# Beginnings of an adapter's keys on text encoders: sd-scripts', diffusers', ComfyUI's own.
TEXT_BEGINNINGS = ("lora_te", "lora_prior_te_", "lycoris_te", "text_encoder", "clip_l.", "clip_g.", "t5xxl.")
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
    return any(key.endswith((*DOWN_ENDINGS, *DIFF_ENDINGS, *_OTHER_ADAPTERS)) for key in tensors)


def adapter_kind(tensors: Tensors) -> str:
    """What kind of LoRA a file is."""
    for kind, endings in ADAPTER_ENDINGS.items():
        if found := [key for key in tensors if key.endswith(endings)]:
            # ComfyUI tells the two by this: blocks of blocks.
            return "BOFT" if kind == "OFT" and len(tensors[found[0]].shape) == 4 else kind
    return "DoRA" if any(key.endswith(DORA_ENDINGS) for key in tensors) else "LoRA"


def adapter_modules(tensors: Iterable[str]) -> set[str]:
    """The layers that a LoRA has factors for, by the beginning of their keys."""
    endings = (*DOWN_ENDINGS, *_OTHER_ADAPTERS)
    return {
        key.removesuffix(ending) for key in tensors if (ending := next(filter(key.endswith, endings), None)) is not None
    }


def other_input(tensors: Tensors) -> str | None:
    """What a denoiser takes beside the noisy latents, by its own keys, prefix removed; None where it takes nothing."""
    is_flux2 = any(key.startswith(FLUX2) for key in tensors)
    for key, usual in (FLUX2_LAYERS if is_flux2 else FIRST_LAYERS).items():
        if key in tensors and len(shape := tensors[key].shape) > 1 and shape[1] != usual:
            return f"{shape[1]} input channels instead of {usual}: {INPUTS.get(shape[1], 'more than noisy latents')}"
    return None


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


def on_text_encoder(key: str) -> bool:
    """Whether a LoRA's key is for a text encoder."""
    return key.startswith(TEXT_BEGINNINGS)


def lora_title(tensors: Tensors) -> str:
    """What a LoRA is for, in words."""
    # The older form of diffusers' keys names the processor between the layer and its projection.
    tensors = {key.replace(".processor.", "."): info for key, info in tensors.items() if not on_text_encoder(key)}
    if not tensors:
        return "text encoders alone"
    names = [key.replace(".", "_") for key in tensors]
    if titles := _lora_families(names):
        return " or ".join(filter(None, (", ".join(titles[:-1]), titles[-1])))
    layers = [key for key in tensors if "attn2_to_k" in key.replace(".", "_")]
    widths = [width for key in layers if (width := _input_width(key, tensors)) is not None]
    if widths:
        return unet_title(widths[0], "a UNet")
    if layers:
        return "a UNet"
    blocks = any("transformer_blocks_" in name and "attentions" not in name for name in names)
    return "SD3 or Flux" if blocks else "a model not known here"


def _lora_families(names: list[str]) -> list[str]:
    """The titles of the families that a LoRA may be for, by its underscored keys: relatives name their layers alike."""

    def has(marks: Iterable[str]) -> bool:
        return any(mark in name for mark in marks for name in names)

    sure = [facts.title for facts in FAMILIES.values() if has(facts.marks.lora)]
    return sure or [
        facts.title
        for facts in FAMILIES.values()
        if has(facts.marks.lora_shared) and not has(mark.replace(".", "_") for mark in facts.marks.not_with)
    ]


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


def _input_width(key: str, tensors: Tensors) -> int | None:
    """The width that an adapted layer takes in, where one of its tensors tells."""
    shape = tensors[key].shape
    if key.endswith((*DOWN_ENDINGS, ".hada_w1_b")):
        return shape[1]
    if key.endswith(".lokr_w1"):
        # A Kronecker product's width is that of both factors, of which the second may be two factors itself.
        stem = key.removesuffix(".lokr_w1")
        second = tensors.get(f"{stem}.lokr_w2") or tensors.get(f"{stem}.lokr_w2_b")
        return shape[1] * second.shape[1] if second else None
    return None
