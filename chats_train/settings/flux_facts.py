"""The records of Flux.1 and of those that follow it: their latents are packed, a patch a token."""

from __future__ import annotations

from .family_facts import JOINT_TARGETS, ComfySizes, FamilyFacts, Marks

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
        lora=("double_blocks_0_img_mod", "single_blocks_0_modulation", "guidance_in_", "vector_in_"),
        lora_shared=("single_transformer_blocks", "single_blocks"),
    ),
    # ComfyUI pads to at least 256 and lets longer prompts be longer; diffusers fixes 512. Trained as it will be
    # sampled.
    t5_tokens=256,
    # Two copies of 12 billion weights fit nowhere that people have.
    methods=("lora",),
    lora_targets=JOINT_TARGETS,
    scheduler="simple",
)

CHROMA = FamilyFacts(
    name="chroma",
    title="Chroma",
    adapter="chroma:Chroma",
    resolution=1024,
    prediction_types=("flow",),
    patch=2,
    denoiser_part="transformer",
    text_parts=("text_encoder",),
    tokenizer_parts=("tokenizer",),
    prefixes={"transformer": "model.diffusion_model."},
    layout="flux",
    lora_style="peft",
    architecture="chroma",
    comfy_sizes=ComfySizes(4096, scaling_factor=0.3611, shift_factor=0.1159),
    latent_channels=16,
    marks=Marks(
        native=("double_blocks.0.img_attn.qkv.weight", "distilled_guidance_layer.in_proj.weight"),
        diffusers=("transformer_blocks.0.attn.add_k_proj.weight", "distilled_guidance_layer.in_proj.weight"),
        # Chroma Radiance, which paints pixels.
        not_with=("nerf_blocks.",),
        lora=("distilled_guidance_layer",),
        lora_shared=("single_transformer_blocks", "single_blocks"),
    ),
    # diffusers' pipeline cuts there; the end of the text is one of them.
    longest_prompt=512,
    template_tokens=1,
    lora_targets=JOINT_TARGETS,
    scheduler="simple",
)

FLUX2_KLEIN = FamilyFacts(
    name="flux2_klein",
    title="Flux.2 Klein",
    adapter="flux2_klein:Flux2Klein",
    resolution=1024,
    prediction_types=("flow",),
    # Its VAE packs four latents into one.
    patch=1,
    denoiser_part="transformer",
    text_parts=("text_encoder",),
    tokenizer_parts=("tokenizer",),
    prefixes={"transformer": "model.diffusion_model."},
    layout="flux2",
    lora_style="peft",
    architecture="flux-2-klein",
    comfy_sizes=ComfySizes(7680, scaling_factor=1.0),
    latent_channels=32,
    pixels_per_latent=16,
    marks=Marks(
        native=("double_blocks.0.img_attn.qkv.weight", "double_stream_modulation_img.lin.weight"),
        diffusers=("transformer_blocks.0.attn.add_k_proj.weight", "double_stream_modulation_img.linear.weight"),
        # Flux.2-dev, which is told a guidance scale.
        not_with=("guidance_in.", "time_guidance_embed.guidance_embedder."),
        lora=("_to_qkv_mlp_proj", "_double_stream_modulation_", "_single_stream_modulation_", "_ff_linear_in"),
        lora_shared=("single_blocks",),
    ),
    # Of the single blocks, what is before the attention: q, k, v and the MLP's first layer are one.
    lora_targets=(*JOINT_TARGETS, "to_qkv_mlp_proj"),
    scheduler="simple",
)

KREA2 = FamilyFacts(
    name="krea2",
    title="Krea 2",
    adapter="krea2:Krea2",
    resolution=1024,
    prediction_types=("flow",),
    patch=2,
    denoiser_part="transformer",
    text_parts=("text_encoder",),
    tokenizer_parts=("tokenizer",),
    prefixes={"transformer": "model.diffusion_model."},
    layout="krea2",
    lora_style="peft",
    architecture="krea-2",
    comfy_sizes=ComfySizes(2560, scaling_factor=1.0),
    latent_channels=16,
    marks=Marks(
        native=("txtfusion.projector.weight", "first.weight"),
        diffusers=("text_fusion.projector.weight", "img_in.weight"),
        lora=("txtfusion_", "text_fusion_", "_attn_to_gate", "_attn_wq"),
    ),
    # diffusers cuts there, ComfyUI nowhere.
    longest_prompt=512,
    # "<|im_end|>\n<|im_start|>assistant\n".
    template_tokens=5,
    hides_template=True,
    scheduler="simple",
)
