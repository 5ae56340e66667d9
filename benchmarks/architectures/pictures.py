"""Networks of pictures."""

from __future__ import annotations

import mini
import torch
from networks import ANIMA, CHROMA, COSMOS_2, FLUX, FLUX2, HIDREAM, LUMINA2, QWEN_IMAGE, Z_IMAGE

from .minis import Network, noise


def unet(**config: object) -> dict:
    fixed = dict(image_size=32, in_channels=4, out_channels=4, use_spatial_transformer=True, legacy=False)
    return {**fixed, **config}


SD20 = unet(
    model_channels=320,
    num_res_blocks=[1, 1],
    channel_mult=[1, 1],
    num_head_channels=64,
    use_linear_in_transformer=True,
    transformer_depth=[1, 1],
    transformer_depth_output=[1, 1, 1, 1],
    transformer_depth_middle=1,
    context_dim=1024,
)
REFINER = unet(
    model_channels=384,
    num_res_blocks=[2, 2, 2, 2],
    channel_mult=[1, 1, 1, 1],
    num_head_channels=64,
    use_linear_in_transformer=True,
    transformer_depth=[0, 0, 4, 4, 4, 4, 0, 0],
    transformer_depth_output=[0, 0, 0, 4, 4, 4, 4, 4, 4, 0, 0, 0],
    transformer_depth_middle=4,
    context_dim=1280,
    num_classes="sequential",
    adm_in_channels=2560,
)
HUNYUAN = dict(
    image_model="hunyuan_video",
    in_channels=16,
    out_channels=16,
    patch_size=[1, 2, 2],
    vec_in_dim=768,
    axes_dim=[16, 56, 56],
    meanflow=False,
    context_in_dim=4096,
    hidden_size=128,
    mlp_ratio=4.0,
    num_heads=1,
    depth=2,
    depth_single_blocks=2,
    theta=256,
    qkv_bias=True,
    byt5=False,
    guidance_embed=True,
    use_cond_type_embedding=False,
    vision_in_dim=None,
    meanflow_sum=False,
)
HUNYUAN_IMAGE = dict(
    HUNYUAN,
    in_channels=64,
    out_channels=64,
    patch_size=[1, 1],
    vec_in_dim=None,
    axes_dim=[64, 64],
    context_in_dim=3584,
    byt5=True,
    guidance_embed=False,
)
BYT5 = {"conditioning_byt5small": lambda seed, tokens: noise(seed + 5, 1, 6, 1472)}
KREA = dict(
    image_model="krea2",
    features=256,
    tdim=64,
    txtdim=128,
    heads=2,
    kvheads=1,
    layers=2,
    patch=2,
    channels=16,
    txtlayers=3,
    txtheads=2,
    txtkvheads=2,
)
OMNIGEN = dict(
    image_model="omnigen2",
    axes_dim_rope=[40, 40, 40],
    axes_lens=[1024, 1664, 1664],
    ffn_dim_multiplier=None,
    hidden_size=240,
    in_channels=16,
    multiple_of=64,
    norm_eps=1e-5,
    num_attention_heads=2,
    num_kv_heads=1,
    num_layers=2,
    num_refiner_layers=1,
    out_channels=None,
    patch_size=2,
    text_feat_dim=256,
    timestep_scale=1000.0,
)
AURA = dict(max_seq=64, cond_seq_dim=2048, n_double_layers=1, n_layers=2, dim=256, n_heads=2, global_conddim=256)
CASCADE = dict(stable_cascade_stage="c", c_cond=128, c_hidden=[128, 128], nhead=[2, 2], blocks=[[1, 1], [1, 1]])
KANDINSKY = dict(
    image_model="kandinsky5",
    model_dim=256,
    axes_dims=(32, 48, 48),
    rope_scale_factor=(1.0, 1.0, 1.0),
    time_dim=64,
    ff_dim=256,
    visual_embed_dim=64,
    num_text_blocks=1,
    num_visual_blocks=2,
)
SMALL, PICTURE, FRAME, FINE = (2, 4, 8, 8), (2, 16, 8, 8), (2, 16, 1, 8, 8), (2, 128, 4, 4)
CLIP = (154, 77)  # encodings of CLIP alone are of whole chunks
# An inpainting model's picture and mask, as core's nodes put them on both prompts.
INPAINT = {"concat_latent_image": noise(8, 1, 4, 8, 8), "concat_mask": (noise(9, 1, 1, 64, 64) > 0).float()}
FILL = {**INPAINT, "concat_latent_image": noise(8, 1, 16, 8, 8)}
REFERENCE = {"reference_latents": [noise(9, 1, 16, 8, 8)]}
REFERENCE_2 = {"reference_latents": [noise(9, 1, 128, 4, 4)]}
REFERENCE_QWEN = {"reference_latents": [noise(9, 1, 16, 1, 8, 8)]}
AT_ZERO = {"reference_latents_method": "index_timestep_zero"}
# SD2.x of 768 pixels predicts v; ComfyUI knows it by the spread of this weight.
V_MARK = {"output_blocks.11.1.transformer_blocks.0.norm1.bias": noise(1, 320)}
LLAMA = {"conditioning_llama3": lambda seed, tokens: noise(seed + 5, 1, 2, tokens, 64)}


# What encoders that pad say of it: all tokens are seen.
SEEN = {"attention_mask": lambda seed, tokens: torch.ones(1, tokens, dtype=torch.long)}


TOKENS = {
    "t5xxl_ids": lambda seed, tokens: (noise(seed, tokens).abs() * 6000).long(),
    "t5xxl_weights": lambda seed, tokens: torch.ones(tokens),
}

PICTURES = {
    "SD1.5": Network("SD15", mini.SD15, SMALL, 768, tokens=CLIP),
    "SD1.5 inpainting (9 channels)": Network(
        "SD15", {**mini.SD15, "in_channels": 9}, SMALL, 768, options=INPAINT, tokens=CLIP
    ),
    "SD2.x, epsilon": Network("SD20", SD20, SMALL, 1024, tokens=CLIP),
    "SD2.x, v-prediction": Network("SD20", SD20, SMALL, 1024, tokens=CLIP, beside=V_MARK),
    "SDXL": Network("SDXL", mini.SDXL, SMALL, 2048, 1280, tokens=CLIP),
    "SDXL inpainting (9 channels)": Network(
        "SDXL", {**mini.SDXL, "in_channels": 9}, SMALL, 2048, 1280, options=INPAINT, tokens=CLIP
    ),
    "SDXL refiner": Network("SDXLRefiner", REFINER, SMALL, 1280, 1280, tokens=CLIP),
    "Flux.1 dev": Network("Flux", FLUX, PICTURE, 4096, 768),
    "Flux.1 schnell": Network("FluxSchnell", {**FLUX, "guidance_embed": False}, PICTURE, 4096, 768),
    "Flux.1 fill": Network("FluxInpaint", {**FLUX, "in_channels": 96}, PICTURE, 4096, 768, options=FILL),
    "Flux.1 Kontext, a reference": Network("Flux", FLUX, PICTURE, 4096, 768, options=REFERENCE),
    "Flux.2 dev": Network("Flux2", FLUX2, FINE, 7680),
    "Flux.2 Klein": Network("Flux2", {**FLUX2, "guidance_embed": False}, FINE, 7680),
    "Flux.2, a reference": Network("Flux2", FLUX2, FINE, 7680, options=REFERENCE_2),
    "Flux.2 Klein, a reference at time zero": Network(
        "Flux2", {**FLUX2, "guidance_embed": False}, FINE, 7680, options={**REFERENCE_2, **AT_ZERO}
    ),
    "Chroma": Network("Chroma", CHROMA, PICTURE, 4096),
    "Qwen-Image": Network("QwenImage", QWEN_IMAGE, FRAME, 3584),
    "Qwen-Image-Edit, a reference": Network("QwenImage", QWEN_IMAGE, FRAME, 3584, options=REFERENCE_QWEN),
    "Qwen-Image-Edit, at time zero": Network(
        "QwenImage", QWEN_IMAGE, FRAME, 3584, options={**REFERENCE_QWEN, **AT_ZERO}
    ),
    "Z-Image": Network("ZImage", Z_IMAGE, PICTURE, 2560),
    "Lumina2": Network("Lumina2", LUMINA2, PICTURE, 2304),
    "Krea 2": Network("Krea2", KREA, FRAME, 384),
    "HiDream": Network("HiDream", HIDREAM, PICTURE, 64, 128, outputs=LLAMA),
    "OmniGen2": Network("Omnigen2", OMNIGEN, PICTURE, 256, outputs=SEEN),
    "OmniGen2, a reference": Network("Omnigen2", OMNIGEN, PICTURE, 256, outputs=SEEN, options=REFERENCE),
    "HunyuanImage 2.1": Network("HunyuanImage21", HUNYUAN_IMAGE, (2, 64, 4, 4), 3584, outputs=BYT5),
    "Cosmos-Predict2": Network("CosmosT2IPredict2", COSMOS_2, FRAME, 1024),
    "Anima": Network("Anima", ANIMA, FRAME, 1024, outputs=TOKENS),
    "AuraFlow": Network("AuraFlow", AURA, SMALL, 2048),
    "Stable Cascade, stage C": Network("Stable_Cascade_C", CASCADE, PICTURE, 1280, 1280, tokens=CLIP),
    "Kandinsky 5 image": Network("Kandinsky5Image", KANDINSKY, FRAME, 3584, 768),
}
