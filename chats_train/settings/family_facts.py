"""What the record of a model family says: one fact of it stands here once, and every room takes its part.

Nothing here imports torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

UNET_TARGETS = ("to_q", "to_k", "to_v", "to_out.0")
JOINT_TARGETS = (*UNET_TARGETS, "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out")


@dataclass(frozen=True)
class Marks:
    """How files of a family are known by their keys, prefix removed.

    Attributes:
        native, diffusers: keys that only a denoiser of this family has together, in either layout; none for UNets,
            which are known by ``text_width``.
        not_with: beginnings of keys, or whole keys, that only its relatives have beside those.
        text_width: of the prompts that a UNet attends to.
        variants: title of a native file by a key that it has; the last, under "", where it has none of them.
        lora: parts of a LoRA's underscored keys that no relative's has.
        lora_shared: parts that its relatives' have too.
    """

    native: tuple[str, ...] = ()
    diffusers: tuple[str, ...] = ()
    not_with: tuple[str, ...] = ()
    text_width: int | None = None
    variants: Mapping[str, str] = field(default_factory=dict)
    lora: tuple[str, ...] = ()
    lora_shared: tuple[str, ...] = ()


@dataclass(frozen=True)
class ComfySizes:
    """What ComfyUI takes for granted of a base that it detects as the family, by the width of its text.

    A base of other widths is trained too, but no ComfyUI loads it, so for it nothing of this is asked.

    Attributes:
        text_width: of the prompts that the denoiser attends to.
        scaling_factor, shift_factor: from the VAE's latents to the denoiser's.
        heads, head_width: of a UNet's attention, of which ComfyUI knows one.
        norm_num_groups, norm_eps: of a UNet's norms.
    """

    text_width: int
    scaling_factor: float
    shift_factor: float = 0.0
    heads: int | None = None
    head_width: int | None = None
    norm_num_groups: int | None = None
    norm_eps: float | None = None


@dataclass(frozen=True)
class FamilyFacts:
    """One model family.

    Attributes:
        name: in configs, commands and exported files.
        title: for people.
        adapter: its class, as `module:class` below ``chats_train.families``.
        resolution: of training where the config states none, in pixels.
        prediction_types: what its denoisers may predict.
        patch: latents along a side of one patch of the denoiser.
        denoiser_part, text_parts, tokenizer_parts: diffusers' names of its parts beside `vae`.
        prefixes: of the keys of each part that its native checkpoints hold, by part, the denoiser first.
        layout: which of ``layouts/`` names its native weights.
        lora_style: `kohya` is `lora_unet_<module, underscored>`, `kohya_native` the same with native names, `peft`
            `transformer.<module>`, or `diffusion_model.<native module>` where ComfyUI maps no such name.
        architecture: its value of `modelspec.architecture`.
        marks: how its files are recognised.
        comfy_sizes: what ComfyUI takes for granted of it.
        latent_channels: of its VAE.
        pixels_per_latent: along a side of one latent.
        t5_tokens: the length that T5 prompts are brought to; 0 without a T5.
        longest_prompt: tokens that a prompt is cut at where prompts have lengths of their own; 0 where all have one.
            No proxy prompt is defined between prompts of different lengths.
        template_tokens: those of ``longest_prompt`` that are put around each prompt.
        hides_template: whether what is put before a prompt is seen by the text encoder alone.
        even_patches: whether pictures have an even number of patches along each side.
        loose_layers: beginnings of layers that see the tokens of a batch as one row after another, so that no share of
            their rows is one model's.
        lora_targets: the layers that LoRAs go on by default, by the ends of their diffusers names.
        has_markers: whether ComfyUI looks for an empty tensor that names the prediction.
        scheduler: the noise levels that it is sampled at by default, by ComfyUI's name.
    """

    name: str
    title: str
    adapter: str
    resolution: int
    prediction_types: tuple[str, ...]
    patch: int
    denoiser_part: str
    text_parts: tuple[str, ...]
    tokenizer_parts: tuple[str, ...]
    prefixes: Mapping[str, str]
    layout: Literal["unet", "mmdit", "flux", "flux2", "qwen_image", "z_image", "krea2"]
    lora_style: Literal["kohya", "kohya_native", "peft"]
    architecture: str
    marks: Marks
    comfy_sizes: ComfySizes
    latent_channels: int
    pixels_per_latent: int = 8
    t5_tokens: int = 0
    longest_prompt: int = 0
    template_tokens: int = 0
    hides_template: bool = False
    even_patches: bool = False
    loose_layers: tuple[str, ...] = ()
    lora_targets: tuple[str, ...] = UNET_TARGETS
    has_markers: bool = False
    scheduler: Literal["normal", "simple"] = "normal"

    @property
    def multiple(self) -> int:
        """Pixels that the sides of pictures are multiples of: one patch of the denoiser, or two."""
        return self.pixels_per_latent * self.patch * (2 if self.even_patches else 1)

    @property
    def forms(self) -> tuple[Literal["proxy", "exact"], ...]:
        """Of CHATS that a pair can be sampled in, the usual first."""
        return ("exact",) if self.longest_prompt else ("proxy", "exact")

    @property
    def parts(self) -> tuple[str, ...]:
        """Every part of the base that training reads."""
        return (self.denoiser_part, "vae", *self.text_parts, *self.tokenizer_parts)
