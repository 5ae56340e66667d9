"""What is known of each model family before anything is opened: one record each, from which every room takes its part.

A new family is a record here and an adapter in ``families/``; a layout joins ``layouts/`` only where its native names
are of a new kind. Nothing here imports torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from ..support.errors import UserError

UNET_TARGETS = ("to_q", "to_k", "to_v", "to_out.0")
JOINT_TARGETS = (*UNET_TARGETS, "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out")
# What the settings that name a base can be, for errors.
SOURCE_FORMS = {
    "pretrained_model": "a .safetensors checkpoint, a diffusers folder, or a hub id (owner/name)",
    "encoders": "a diffusers folder or a hub id (owner/name)",
}


@dataclass(frozen=True)
class Marks:
    """How files of a family are known by their keys, prefix removed.

    Attributes:
        native, diffusers: keys that only a denoiser of this family has together, in either layout; none for UNets,
            which are known by ``text_width``.
        not_with: beginnings of keys, or whole keys, that only its relatives have beside those.
        text_width: of the prompts that a UNet attends to.
        variants: title of a native file by a key that it has; the last, under "", where it has none of them.
        lora: parts of a LoRA's underscored keys.
    """

    native: tuple[str, ...] = ()
    diffusers: tuple[str, ...] = ()
    not_with: tuple[str, ...] = ()
    text_width: int | None = None
    variants: Mapping[str, str] = field(default_factory=dict)
    lora: tuple[str, ...] = ()


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
        loose_layers: beginnings of layers that see the tokens of a batch as one row after another, so that no share of
            their rows is one model's.
        methods: the training methods that fit somewhere.
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
    loose_layers: tuple[str, ...] = ()
    methods: tuple[str, ...] = ("lora", "full")
    lora_targets: tuple[str, ...] = UNET_TARGETS
    has_markers: bool = False
    scheduler: Literal["normal", "simple"] = "normal"

    @property
    def multiple(self) -> int:
        """Pixels along a side of one patch of the denoiser: pictures come in multiples of it."""
        return self.pixels_per_latent * self.patch

    @property
    def forms(self) -> tuple[Literal["proxy", "exact"], ...]:
        """Of CHATS that a pair can be sampled in, the usual first."""
        return ("exact",) if self.longest_prompt else ("proxy", "exact")

    @property
    def parts(self) -> tuple[str, ...]:
        """Every part of the base that training reads."""
        return (self.denoiser_part, "vae", *self.text_parts, *self.tokenizer_parts)


SD15 = FamilyFacts(
    name="sd15",
    title="SD1.5",
    adapter="sd15:SD15",
    resolution=512,
    prediction_types=("epsilon", "v_prediction"),
    patch=1,
    denoiser_part="unet",
    text_parts=("text_encoder",),
    tokenizer_parts=("tokenizer",),
    prefixes={"unet": "model.diffusion_model.", "vae": "first_stage_model.", "text_encoder": "cond_stage_model."},
    layout="unet",
    lora_style="kohya",
    architecture="stable-diffusion-v1",
    comfy_sizes=ComfySizes(768, scaling_factor=0.18215, heads=8, norm_num_groups=32, norm_eps=1e-5),
    latent_channels=4,
    marks=Marks(text_width=768),
)

SDXL = FamilyFacts(
    name="sdxl",
    title="SDXL",
    adapter="sdxl:SDXL",
    resolution=1024,
    prediction_types=("epsilon", "v_prediction"),
    patch=1,
    denoiser_part="unet",
    text_parts=("text_encoder", "text_encoder_2"),
    # Both encoders read one vocabulary; `open_clip_ids` gives the second one its padding.
    tokenizer_parts=("tokenizer",),
    prefixes={
        "unet": "model.diffusion_model.",
        "vae": "first_stage_model.",
        "text_encoder": "conditioner.embedders.0.",
        "text_encoder_2": "conditioner.embedders.1.",
    },
    layout="unet",
    # sd-scripts names SDXL's LoRA modules after the native layout, so every user interface reads that.
    lora_style="kohya_native",
    architecture="stable-diffusion-xl-v1-base",
    comfy_sizes=ComfySizes(2048, scaling_factor=0.13025, head_width=64, norm_num_groups=32, norm_eps=1e-5),
    latent_channels=4,
    marks=Marks(text_width=2048),
    has_markers=True,
)

SD3 = FamilyFacts(
    name="sd3",
    title="SD3",
    adapter="sd3:SD3",
    resolution=1024,
    prediction_types=("flow",),
    patch=2,
    denoiser_part="transformer",
    text_parts=("text_encoder", "text_encoder_2", "text_encoder_3"),
    # Both CLIPs read one vocabulary; `open_clip_ids` gives the second one its padding.
    tokenizer_parts=("tokenizer", "tokenizer_3"),
    prefixes={"transformer": "model.diffusion_model."},
    layout="mmdit",
    lora_style="peft",
    architecture="stable-diffusion-3-medium",
    comfy_sizes=ComfySizes(4096, scaling_factor=1.5305, shift_factor=0.0609),
    latent_channels=16,
    marks=Marks(
        native=("joint_blocks.0.context_block.attn.qkv.weight",),
        diffusers=("transformer_blocks.0.attn.add_k_proj.weight",),
        # Flux and Flux.2 have the same blocks and single ones; so has Qwen-Image, whose text goes in through `txt_in`.
        not_with=("single_transformer_blocks.", "txt_in.weight"),
        lora=("joint_blocks", "transformer_blocks_0_attn_add_k"),
    ),
    # ComfyUI pads T5 to CLIP's 77 for SD3, and diffusers' trainer cuts there: a pair is trained as it will be sampled.
    t5_tokens=77,
    lora_targets=JOINT_TARGETS,
    scheduler="simple",
)

FLUX = FamilyFacts(
    name="flux",
    title="Flux",
    adapter="flux:Flux",
    resolution=1024,
    prediction_types=("flow",),
    patch=2,
    denoiser_part="transformer",
    text_parts=("text_encoder", "text_encoder_2"),
    tokenizer_parts=("tokenizer", "tokenizer_2"),
    prefixes={"transformer": "model.diffusion_model."},
    layout="flux",
    lora_style="peft",
    architecture="flux-1-dev",
    comfy_sizes=ComfySizes(4096, scaling_factor=0.3611, shift_factor=0.1159),
    latent_channels=16,
    marks=Marks(
        native=("double_blocks.0.img_attn.qkv.weight",),
        diffusers=("transformer_blocks.0.attn.add_k_proj.weight", "single_transformer_blocks.0.attn.to_k.weight"),
        # Chroma and Flux.2 have Flux.1's blocks too, and modulate them from elsewhere.
        not_with=("distilled_guidance_layer.", "double_stream_modulation_img."),
        variants={"guidance_in.in_layer.weight": "Flux.1-dev", "": "Flux.1-schnell"},
        lora=("single_transformer_blocks", "single_blocks"),
    ),
    # ComfyUI pads to at least 256 and lets longer prompts be longer; diffusers fixes 512. Trained as it will be
    # sampled.
    t5_tokens=256,
    # Two copies of 12 billion weights fit nowhere that people have.
    methods=("lora",),
    lora_targets=JOINT_TARGETS,
    scheduler="simple",
)

FAMILIES: dict[str, FamilyFacts] = {facts.name: facts for facts in (SD15, SDXL, SD3, FLUX)}


def facts_of(name: str) -> FamilyFacts:
    """The record of a family by its name in the config.

    Raises:
        UserError: when it is not known.
    """
    if name not in FAMILIES:
        raise UserError(f"`family` is `{name}`; known are {', '.join(FAMILIES)}")
    return FAMILIES[name]
