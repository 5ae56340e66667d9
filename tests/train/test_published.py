"""The configurations of the published models, as their folders state them: each is taken as it is, and what its
variants change is refused."""

import json

import diffusers
import pytest

from chats_train.families import SourceError, adapter_of
from chats_train.families.single_file import CONFIGS
from chats_train.families.sources import empty_shapes
from chats_train.settings.facts import FAMILIES


def bundled(family: str, part: str) -> dict:
    return json.loads((CONFIGS / family / part / "config.json").read_text())


DIFFUSION = {
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "clip_sample": False,
    "num_train_timesteps": 1000,
    "prediction_type": "epsilon",
    "sample_max_value": 1.0,
    "set_alpha_to_one": False,
    "skip_prk_steps": True,
    "steps_offset": 1,
    "trained_betas": None,
}
FLOW = {
    "_class_name": "FlowMatchEulerDiscreteScheduler",
    "base_image_seq_len": 256,
    "base_shift": 0.5,
    "max_image_seq_len": 4096,
    "max_shift": 1.15,
    "num_train_timesteps": 1000,
    "shift": 3.0,
    "use_dynamic_shifting": False,
}
UNET = {
    "_class_name": "UNet2DConditionModel",
    "_diffusers_version": "0.19.0.dev0",
    "act_fn": "silu",
    "addition_embed_type": None,
    "addition_embed_type_num_heads": 64,
    "addition_time_embed_dim": None,
    "attention_head_dim": 8,
    "block_out_channels": [320, 640, 1280, 1280],
    "center_input_sample": False,
    "class_embed_type": None,
    "class_embeddings_concat": False,
    "conv_in_kernel": 3,
    "conv_out_kernel": 3,
    "cross_attention_dim": 768,
    "cross_attention_norm": None,
    "down_block_types": ["CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"],
    "downsample_padding": 1,
    "dual_cross_attention": False,
    "encoder_hid_dim": None,
    "encoder_hid_dim_type": None,
    "flip_sin_to_cos": True,
    "freq_shift": 0,
    "in_channels": 4,
    "layers_per_block": 2,
    "mid_block_only_cross_attention": None,
    "mid_block_scale_factor": 1,
    "mid_block_type": "UNetMidBlock2DCrossAttn",
    "norm_eps": 1e-05,
    "norm_num_groups": 32,
    "num_attention_heads": None,
    "num_class_embeds": None,
    "only_cross_attention": False,
    "out_channels": 4,
    "projection_class_embeddings_input_dim": None,
    "resnet_out_scale_factor": 1.0,
    "resnet_skip_time_act": False,
    "resnet_time_scale_shift": "default",
    "sample_size": 64,
    "time_cond_proj_dim": None,
    "time_embedding_act_fn": None,
    "time_embedding_dim": None,
    "time_embedding_type": "positional",
    "timestep_post_act": None,
    "transformer_layers_per_block": 1,
    "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"],
    "upcast_attention": None,
    "use_linear_projection": False,
}
SDXL_UNET = {
    **UNET,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "attention_head_dim": [5, 10, 20],
    "block_out_channels": [320, 640, 1280],
    "cross_attention_dim": 2048,
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
    "projection_class_embeddings_input_dim": 2816,
    "sample_size": 128,
    "transformer_layers_per_block": [1, 2, 10],
    "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
    "use_linear_projection": True,
}
VAE = {
    "_class_name": "AutoencoderKL",
    "act_fn": "silu",
    "block_out_channels": [128, 256, 512, 512],
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "in_channels": 3,
    "latent_channels": 4,
    "layers_per_block": 2,
    "norm_num_groups": 32,
    "out_channels": 3,
    "sample_size": 512,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
}
FLOW_VAE = {
    **VAE,
    "force_upcast": True,
    "latent_channels": 16,
    "latents_mean": None,
    "latents_std": None,
    "mid_block_add_attention": True,
    "sample_size": 1024,
    "use_post_quant_conv": False,
    "use_quant_conv": False,
}
SD3_VAE = {**FLOW_VAE, "scaling_factor": 1.5305, "shift_factor": 0.0609}
SD3 = {
    "_class_name": "SD3Transformer2DModel",
    "attention_head_dim": 64,
    "caption_projection_dim": 1536,
    "in_channels": 16,
    "joint_attention_dim": 4096,
    "num_attention_heads": 24,
    "num_layers": 24,
    "out_channels": 16,
    "patch_size": 2,
    "pooled_projection_dim": 2048,
    "pos_embed_max_size": 192,
    "sample_size": 128,
}
CLIP_L = bundled("sdxl", "text_encoder")
CLIP_G = bundled("sdxl", "text_encoder_2")
T5 = {"model_type": "t5", "architectures": ["T5EncoderModel"], "d_model": 4096, "d_ff": 10240, "num_layers": 24}
SDXL_TEXT = {"text_encoder": CLIP_L, "text_encoder_2": CLIP_G}
SD3_TEXT = {"text_encoder": CLIP_L, "text_encoder_2": CLIP_G, "text_encoder_3": T5}
SDXL_VAE = {**VAE, "force_upcast": True, "sample_size": 1024, "scaling_factor": 0.13025}
SDXL_SCHEDULER = {
    "_class_name": "EulerDiscreteScheduler",
    **DIFFUSION,
    "interpolation_type": "linear",
    "timestep_spacing": "leading",
    "use_karras_sigmas": False,
}
PUBLISHED = {
    "SD1.5": (
        "sd15",
        # The first folders state no scale of the latents: 0.18215 is the class's own.
        {"unet": UNET, "vae": VAE, "text_encoder": CLIP_L, "scheduler": {"_class_name": "PNDMScheduler", **DIFFUSION}},
    ),
    "SD1.5, bundled": (
        "sd15",
        {part: bundled("sd15", part) for part in ("unet", "vae", "text_encoder")} | {"scheduler": {}},
    ),
    "SDXL base": ("sdxl", {"unet": SDXL_UNET, "vae": SDXL_VAE, **SDXL_TEXT, "scheduler": SDXL_SCHEDULER}),
    "SDXL, bundled": (
        "sdxl",
        {part: bundled("sdxl", part) for part in ("unet", "vae", "text_encoder", "text_encoder_2")} | {"scheduler": {}},
    ),
    "SDXL, v-prediction": (
        "sdxl",
        {
            "unet": SDXL_UNET,
            "vae": SDXL_VAE,
            **SDXL_TEXT,
            "scheduler": {
                **SDXL_SCHEDULER,
                "prediction_type": "v_prediction",
                "rescale_betas_zero_snr": True,
                "timestep_spacing": "trailing",
            },
        },
    ),
    "SD3 medium": (
        "sd3",
        {
            "transformer": SD3,
            "vae": SD3_VAE,
            **SD3_TEXT,
            "scheduler": {"_class_name": FLOW["_class_name"], "num_train_timesteps": 1000, "shift": 3.0},
        },
    ),
    "SD3.5 medium": (
        "sd3",
        {
            "transformer": {
                **SD3,
                "dual_attention_layers": list(range(13)),
                "pos_embed_max_size": 384,
                "qk_norm": "rms_norm",
            },
            "vae": SD3_VAE,
            **SD3_TEXT,
            "scheduler": FLOW,
        },
    ),
    "SD3.5 large": (
        "sd3",
        {
            "transformer": {
                **SD3,
                "caption_projection_dim": 2432,
                "num_attention_heads": 38,
                "num_layers": 38,
                "qk_norm": "rms_norm",
            },
            "vae": SD3_VAE,
            **SD3_TEXT,
            "scheduler": FLOW,
        },
    ),
    "Flux.1-dev": (
        "flux",
        {
            "transformer": {
                "_class_name": "FluxTransformer2DModel",
                "_name_or_path": "../checkpoints/flux-dev/transformer",
                "attention_head_dim": 128,
                "guidance_embeds": True,
                "in_channels": 64,
                "joint_attention_dim": 4096,
                "num_attention_heads": 24,
                "num_layers": 19,
                "num_single_layers": 38,
                "patch_size": 1,
                "pooled_projection_dim": 768,
            },
            "vae": {**FLOW_VAE, "scaling_factor": 0.3611, "shift_factor": 0.1159},
            "text_encoder": CLIP_L,
            "text_encoder_2": T5,
            "scheduler": {**FLOW, "use_dynamic_shifting": True},
        },
    ),
    "Z-Image": (
        "z_image",
        {
            "transformer": {
                "_class_name": "ZImageTransformer2DModel",
                "all_f_patch_size": [1],
                "all_patch_size": [2],
                "axes_dims": [32, 48, 48],
                "axes_lens": [1536, 512, 512],
                "cap_feat_dim": 2560,
                "dim": 3840,
                "in_channels": 16,
                "n_heads": 30,
                "n_kv_heads": 30,
                "n_layers": 30,
                "n_refiner_layers": 2,
                "norm_eps": 1e-05,
                "qk_norm": True,
                "rope_theta": 256.0,
                "t_scale": 1000.0,
            },
            "vae": {**FLOW_VAE, "scaling_factor": 0.3611, "shift_factor": 0.1159},
            "text_encoder": {"model_type": "qwen3", "hidden_size": 2560},
            "scheduler": {**FLOW, "shift": 6.0},
        },
    ),
    "Qwen-Image": (
        "qwen_image",
        {
            "transformer": {
                "_class_name": "QwenImageTransformer2DModel",
                "attention_head_dim": 128,
                "axes_dims_rope": [16, 56, 56],
                "guidance_embeds": False,
                "in_channels": 64,
                "joint_attention_dim": 3584,
                "num_attention_heads": 24,
                "num_layers": 60,
                "out_channels": 16,
                "patch_size": 2,
                "pooled_projection_dim": 768,
            },
            "vae": {
                "_class_name": "AutoencoderKLQwenImage",
                "attn_scales": [],
                "base_dim": 96,
                "dim_mult": [1, 2, 4, 4],
                "dropout": 0.0,
                "num_res_blocks": 2,
                "temperal_downsample": [False, True, True],
                "z_dim": 16,
            },
            "text_encoder": {"model_type": "qwen2_5_vl", "hidden_size": 3584},
            "scheduler": {
                **FLOW,
                "max_image_seq_len": 8192,
                "max_shift": 0.9,
                "shift": 1.0,
                "shift_terminal": 0.02,
                "use_dynamic_shifting": True,
            },
        },
    ),
    "Chroma1-HD": (
        "chroma",
        {
            "transformer": {
                "_class_name": "ChromaTransformer2DModel",
                "approximator_hidden_dim": 5120,
                "approximator_layers": 5,
                "approximator_num_channels": 64,
                "attention_head_dim": 128,
                "axes_dims_rope": [16, 56, 56],
                "in_channels": 64,
                "joint_attention_dim": 4096,
                "num_attention_heads": 24,
                "num_layers": 19,
                "num_single_layers": 38,
                "out_channels": None,
                "patch_size": 1,
            },
            "vae": {**FLOW_VAE, "scaling_factor": 0.3611, "shift_factor": 0.1159},
            "text_encoder": T5,
            "scheduler": {**FLOW, "shift": 1.0, "use_beta_sigmas": True},
        },
    ),
}


class Configurations:
    """A base with nothing but its configurations; its denoiser has the weights that its own says."""

    notes: tuple = ()
    zeros_for_empty_prompt = True

    def __init__(self, configs):
        self.config, self.noise, self.index = configs.__getitem__, configs["scheduler"], {}

    def where(self, part):
        return part

    def shapes(self, part):
        return empty_shapes(getattr(diffusers, self.config(part)["_class_name"]), self.config(part))

    def require_kind(self):
        pass

    def require_stated_prediction(self):
        pass

    def require_whole(self, classes, denoiser):
        pass


def opened(name, **changes):
    """A published model, some of its configurations changed."""
    family, configs = PUBLISHED[name]
    changed = {part: {**config, **changes.get(part, {})} for part, config in configs.items()}
    return adapter_of(FAMILIES[family])(Configurations(changed))


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_models_are_what_their_family_takes_them_for(name):
    assert opened(name).notes == []


@pytest.mark.parametrize(
    ("name", "changes", "sentence"),
    [
        # SDXL's old conversions state SD1.5's scale, or none.
        (
            "SDXL base",
            {"vae": {"scaling_factor": 0.18215}},
            "vae: `scaling_factor` is `0.18215`, where SDXL has 0.13025",
        ),
        ("SD3 medium", {"vae": {"shift_factor": None}}, "vae: `shift_factor` is `null`, where SD3 has 0.0609"),
        ("SDXL base", {"unet": {"attention_head_dim": 8}}, "unet: `attention_head_dim` is `8`"),
        (
            "SD1.5",
            {"scheduler": {"_class_name": "EDMEulerScheduler"}},
            "scheduler: `_class_name` is `EDMEulerScheduler`",
        ),
        ("Qwen-Image", {"transformer": {"zero_cond_t": True}}, "transformer: `zero_cond_t` is `true`"),
        ("Qwen-Image", {"vae": {"latents_mean": [0.0] * 16}}, "vae: `latents_mean` is"),
        # What a scheduler does not state is its class's default, which is another.
        # ComfyUI modulates every Chroma as if it had the published depth.
        ("Chroma1-HD", {"transformer": {"num_layers": 8}}, "transformer: `num_layers` is 8 and `num_single_layers` 38"),
        ("SD3 medium", {"scheduler": {"shift": 1.0}}, "scheduler: `shift` is `1.0`, where SD3 has 3.0"),
    ],
)
def test_their_variants_are_refused(name, changes, sentence):
    with pytest.raises(SourceError) as caught:
        opened(name, **changes)
    assert str(caught.value).startswith(sentence)


def test_what_is_not_stated_is_the_default_of_diffusers_class():
    family, configs = PUBLISHED["SDXL base"]
    for part, key, default in (("scheduler", "beta_schedule", "linear"), ("vae", "scaling_factor", "0.18215")):
        silent = {**configs, part: {name: value for name, value in configs[part].items() if name != key}}
        with pytest.raises(SourceError, match=f"`{key}` is `{default}` .diffusers' default, as the file states none."):
            adapter_of(FAMILIES[family])(Configurations(silent))


@pytest.mark.parametrize(("name", "family", "title"), [("SDXL base", "sd15", "SDXL"), ("SD1.5", "sdxl", "SD1.5")])
def test_another_family_is_named(name, family, title):
    with pytest.raises(SourceError, match=f"so it is {title}, and `family` is {family}; correct `family`"):
        adapter_of(FAMILIES[family])(Configurations(PUBLISHED[name][1]))


def test_playground_is_refused_for_its_noise():
    """Playground v2.5: SDXL's layers, EDM's noise, and latents by their own statistics."""
    statistics = {"latents_mean": [-1.6574, 1.886, -1.383, 2.5155], "latents_std": [8.4927, 5.9022, 6.5498, 5.2299]}
    edm = {"_class_name": "EDMDPMSolverMultistepScheduler", "sigma_data": 0.5, "sigma_max": 80.0, "sigma_min": 0.002}
    with pytest.raises(SourceError, match="whose noise is EDM's, in other scales; give the SDXL base"):
        opened("SDXL base", vae={"scaling_factor": 0.5, **statistics}, scheduler=edm)
    assert len(opened("SDXL base", vae={"scaling_factor": 0.5, **statistics}).notes) == 1
