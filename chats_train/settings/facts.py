"""What is known of each model family before anything is opened: one record each, from which every room takes its part.

A new family is a record here and an adapter in ``families/``; a layout joins ``layouts/`` only where its native names
are of a new kind. Nothing here imports torch.
"""

from __future__ import annotations

from ..support.errors import UserError
from .family_facts import JOINT_TARGETS, ComfySizes, FamilyFacts, Marks
from .flux_facts import CHROMA, FLUX, FLUX2_KLEIN, KREA2

# What the settings that name a base can be, for errors.
SOURCE_FORMS = {
    "pretrained_model": "a .safetensors checkpoint, a diffusers folder, or a hub id (owner/name)",
    "encoders": "a diffusers folder or a hub id (owner/name)",
}

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
        lora=("joint_blocks",),
        lora_shared=("transformer_blocks_0_attn_add_k",),
    ),
    # ComfyUI pads T5 to CLIP's 77 for SD3, and diffusers' trainer cuts there: a pair is trained as it will be sampled.
    t5_tokens=77,
    lora_targets=JOINT_TARGETS,
    scheduler="simple",
)

Z_IMAGE = FamilyFacts(
    name="z_image",
    title="Z-Image",
    adapter="z_image:ZImage",
    resolution=1024,
    prediction_types=("flow",),
    patch=2,
    denoiser_part="transformer",
    text_parts=("text_encoder",),
    tokenizer_parts=("tokenizer",),
    prefixes={"transformer": "model.diffusion_model."},
    layout="z_image",
    lora_style="peft",
    architecture="z-image",
    comfy_sizes=ComfySizes(2560, scaling_factor=0.3611, shift_factor=0.1159),
    latent_channels=16,
    marks=Marks(
        # Lumina 2 has its blocks too, and pads nothing.
        native=("cap_pad_token", "noise_refiner.0.attention.qkv.weight"),
        diffusers=("cap_pad_token", "noise_refiner.0.attention.to_k.weight"),
        # The model that edits pictures, and the one without a VAE.
        not_with=("siglip_embedder.", "dec_net."),
        lora=("_attention_to_q", "_attention_to_k", "_attention_to_v", "_attention_to_out", "adaLN_modulation_0_"),
    ),
    # diffusers cuts there, ComfyUI nowhere.
    longest_prompt=512,
    # "<|im_start|>user\n", "<|im_end|>\n<|im_start|>assistant\n".
    template_tokens=8,
    loose_layers=("cap_embedder.",),
    scheduler="simple",
)

QWEN_IMAGE = FamilyFacts(
    name="qwen_image",
    title="Qwen-Image",
    adapter="qwen_image:QwenImage",
    resolution=1024,
    prediction_types=("flow",),
    patch=2,
    denoiser_part="transformer",
    text_parts=("text_encoder",),
    tokenizer_parts=("tokenizer",),
    prefixes={"transformer": "model.diffusion_model."},
    layout="qwen_image",
    lora_style="peft",
    architecture="qwen-image",
    comfy_sizes=ComfySizes(3584, scaling_factor=1.0),
    latent_channels=16,
    marks=Marks(
        # Both layouts are one.
        native=("txt_norm.weight", "transformer_blocks.0.txt_mlp.net.2.weight"),
        # The models that edit pictures, the one with layers, and Flux's relatives.
        not_with=(
            "__index_timestep_zero__",
            "time_text_embed.addition_t_embedding.",
            "single_transformer_blocks.",
        ),
        lora=("_img_mlp_net_", "_txt_mlp_net_", "_img_mod_1", "_txt_mod_1"),
        lora_shared=("transformer_blocks_0_attn_add_k",),
    ),
    # diffusers cuts there, ComfyUI nowhere.
    longest_prompt=1024,
    # "<|im_end|>\n<|im_start|>assistant\n".
    template_tokens=5,
    hides_template=True,
    # Of an odd number diffusers and ComfyUI have the middle at another patch.
    even_patches=True,
    lora_targets=JOINT_TARGETS,
    scheduler="simple",
)

FAMILIES: dict[str, FamilyFacts] = {
    facts.name: facts for facts in (SD15, SDXL, SD3, FLUX, Z_IMAGE, QWEN_IMAGE, CHROMA, FLUX2_KLEIN, KREA2)
}


def facts_of(name: str) -> FamilyFacts:
    """The record of a family by its name in the config.

    Raises:
        UserError: when it is not known.
    """
    if name not in FAMILIES:
        raise UserError(f"`family` is `{name}`; known are {', '.join(FAMILIES)}")
    return FAMILIES[name]
