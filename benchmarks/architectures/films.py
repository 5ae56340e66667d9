"""Networks with a dimension of time: films and sound."""

from __future__ import annotations

from collections.abc import Mapping

import comfy.ldm.audio.embedders
import torch
from networks import COSMOS_1, LTX_WITH_SOUND, WAN

from .minis import Network, noise, seeded
from .pictures import BYT5, HUNYUAN, HUNYUAN_IMAGE, KANDINSKY, SEEN, unet

SVD = unet(
    in_channels=8,
    model_channels=320,
    num_res_blocks=[1, 1],
    channel_mult=[1, 1],
    num_head_channels=64,
    use_linear_in_transformer=True,
    transformer_depth=[1, 1],
    transformer_depth_output=[1, 1, 1, 1],
    transformer_depth_middle=1,
    context_dim=1024,
    num_classes="sequential",
    adm_in_channels=768,
    use_temporal_attention=True,
    use_temporal_resblock=True,
    extra_ff_mix_layer=True,
    use_spatial_context=True,
    merge_strategy="learned_with_images",
    merge_factor=0.0,
    video_kernel_size=[3, 1, 1],
    disable_temporal_crossattention=False,
    max_ddpm_temb_period=10000,
)
HUNYUAN_15 = dict(
    HUNYUAN_IMAGE,
    in_channels=65,
    out_channels=32,
    patch_size=[1, 1, 1],
    axes_dim=[16, 56, 56],
    use_cond_type_embedding=True,
    vision_in_dim=1152,
    meanflow_sum=True,
)
LTX = dict(
    image_model="ltxv",
    num_layers=2,
    attention_head_dim=64,
    num_attention_heads=2,
    cross_attention_dim=128,
    caption_channels=256,
    use_keyframes_abs_pos_embedding=False,
)
STABLE_AUDIO = dict(
    audio_model="dit1.0",
    global_cond_dim=1536,
    project_cond_tokens=False,
    embed_dim=768,
    num_heads=12,
    depth=2,
    io_channels=64,
    timestep_features_type="learned",
    cond_token_dim=768,
)
ACE = dict(
    audio_model="ace",
    attention_head_dim=64,
    in_channels=8,
    inner_dim=128,
    max_height=16,
    max_position=32768,
    max_width=32768,
    mlp_ratio=2.5,
    num_attention_heads=2,
    num_layers=2,
    out_channels=8,
    patch_size=[16, 1],
    rope_theta=1000000.0,
    speaker_embedding_dim=512,
    text_embedding_dim=768,
    ssl_encoder_depths=[8, 8],
    ssl_latent_dims=[64, 64],
    ssl_names=["mert", "m-hubert"],
    lyric_encoder_vocab_size=100,
    lyric_hidden_size=1024,
)
ACE_15 = dict(
    audio_model="ace1.5",
    hidden_size=256,
    intermediate_size=256,
    num_heads=2,
    num_kv_heads=1,
    encoder_hidden_size=256,
    encoder_num_heads=2,
    encoder_intermediate_size=256,
    num_dit_layers=2,
    num_lyric_layers=1,
    num_timbre_layers=1,
    num_tokenizer_layers=1,
    fsq_dim=256,
)
FILM, SMALL_FILM, LTX_FILM = (2, 16, 3, 8, 8), (2, 32, 3, 4, 4), (2, 128, 3, 4, 4)
FIRST_FRAME = {"concat_latent_image": noise(8, 1, 16, 3, 8, 8), "concat_mask": (noise(9, 1, 1, 3, 8, 8) > 0).float()}
CONTROL = {
    "vace_frames": [noise(8, 1, 32, 3, 8, 8)],
    "vace_mask": [(noise(9, 1, 64, 3, 8, 8) > 0).float()],
    "vace_strength": [1.0],
}
LYRICS = {"conditioning_lyrics": lambda seed, tokens: (noise(seed, 1, tokens).abs() * 20).int()}
SUNG = {"conditioning_lyrics": lambda seed, tokens: noise(seed + 5, 1, tokens, 1024)}


def seconds() -> Mapping[str, torch.Tensor]:
    """Stable Audio's embedders of a clip's start and length, which are beside its network."""
    weights = seeded(comfy.ldm.audio.embedders.NumberConditioner(768, min_val=0, max_val=512), 1)
    places = ("seconds_start", "seconds_total")
    return {f"conditioner.conditioners.{place}.{key}": value for place in places for key, value in weights.items()}


FILMS = {
    "SVD": Network("SVD_img2vid", SVD, (4, 4, 8, 8), 1024, options=dict(concat_latent_image=noise(8, 1, 4, 8, 8))),
    "HunyuanVideo": Network("HunyuanVideo", HUNYUAN, FILM, 4096, 768),
    "HunyuanVideo 1.5": Network("HunyuanVideo15", HUNYUAN_15, SMALL_FILM, 3584, outputs=BYT5),
    "Wan 2.1": Network("WAN21_T2V", WAN, FILM, 4096),
    "Wan 2.1 VACE": Network(
        "WAN21_Vace", {**WAN, "model_type": "vace", "vace_in_dim": 96, "vace_layers": 1}, FILM, 4096, options=CONTROL
    ),
    "Wan 2.2 14B image to video": Network("WAN21_T2V", {**WAN, "in_dim": 36}, FILM, 4096, options=FIRST_FRAME),
    "Wan 2.2 5B": Network("WAN22_T2V", {**WAN, "in_dim": 48, "out_dim": 48}, (2, 48, 3, 8, 8), 4096),
    "LTX-Video": Network("LTXV", LTX, LTX_FILM, 256, outputs=SEEN),
    "LTX-2 (film with sound)": Network("LTXAV", LTX_WITH_SOUND, ((2, 128, 3, 4, 4), (2, 8, 4, 16)), 256),
    "Cosmos 1": Network("CosmosT2V", COSMOS_1, (2, 16, 4, 8, 8), 1024),
    "Kandinsky 5 video": Network("Kandinsky5", {**KANDINSKY, "visual_embed_dim": 132}, FILM, 3584, 768),
    "Stable Audio": Network("StableAudio", STABLE_AUDIO, (2, 64, 32), 768, beside=seconds()),
    "ACE-Step 1": Network("ACEStep", ACE, (2, 8, 16, 32), 768, outputs=LYRICS),
    "ACE-Step 1.5": Network("ACEStep15", ACE_15, (2, 64, 32), 1024, outputs=SUNG),
}
