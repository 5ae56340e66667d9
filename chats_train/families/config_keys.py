"""What a base's configurations may say: each key that changes the arithmetic, with the values that are honoured here,
and the keys that change none. Any other is refused, so that no base is trained as what it is not.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from chats.words import LONGEST, shown

from ..layouts.recognition import INPUTS
from .schedule import BETA_END, BETA_START, TRAIN_TIMESTEPS
from .source_error import SourceError

# What a value tells of a base that is not the one it is taken for, by key.
KNOWN_AS: Mapping[tuple[str, Any], str] = {
    **{("in_channels", channels): f"so it takes more: {what}" for channels, what in INPUTS.items()},
    ("prediction_type", "sample"): "which predicts the picture itself",
    ("_class_name", "EDMEulerScheduler"): "whose noise is EDM's, in other scales",
    ("_class_name", "EDMDPMSolverMultistepScheduler"): "whose noise is EDM's, in other scales",
    ("_class_name", "LCMScheduler"): "so it was distilled for a few steps without guidance",
    ("_class_name", "TCDScheduler"): "so it was distilled for a few steps without guidance",
    ("is_distilled", True): "so it was distilled for a few steps without guidance",
}
# The same of a key, whatever its value.
KEY_KNOWN_AS = {
    "quantization_config": "so its weights are quantized",
    "time_cond_proj_dim": "so it was distilled for few steps and is told a guidance scale (LCM)",
    "class_embed_type": "so it is told a class too",
    "num_class_embeds": "so it is told a class too",
    "encoder_hid_dim_type": "so it is told more than a prompt",
    "latents_mean": "and ends up with one of the two statistics alone",
    "latents_std": "and ends up with one of the two statistics alone",
}


@dataclass(frozen=True)
class ConfigKeys:
    """The keys of one configuration.

    Attributes:
        honoured: the values that are trained right, by key; of a list, what each of its entries may be.
        built: keys of any value, separated by spaces, which diffusers' class builds and the shapes of the weights tell
            ComfyUI.
        idle: keys that do not enter the arithmetic of training.
    """

    honoured: Mapping[str, tuple[Any, ...]]
    built: str = ""
    idle: str = ""

    def but(self, **honoured: tuple[Any, ...]) -> ConfigKeys:
        """The same with other values for some keys."""
        return ConfigKeys({**self.honoured, **honoured}, self.built, self.idle)

    @property
    def names(self) -> set[str]:
        """Of all keys."""
        return {*self.honoured, *self.built.split(), *self.idle.split()}


UNET = ConfigKeys(
    honoured={
        "in_channels": (4,),
        "out_channels": (4,),
        "center_input_sample": (False,),
        "flip_sin_to_cos": (True,),
        "freq_shift": (0,),
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "mid_block_type": ("UNetMidBlock2DCrossAttn",),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
        "only_cross_attention": (False,),
        "mid_block_only_cross_attention": (None, False),
        "downsample_padding": (1,),
        "mid_block_scale_factor": (1,),
        "act_fn": ("silu",),
        "encoder_hid_dim": (None,),
        "encoder_hid_dim_type": (None,),
        "num_attention_heads": (None,),
        "dual_cross_attention": (False,),
        "class_embed_type": (None,),
        "num_class_embeds": (None,),
        "class_embeddings_concat": (False,),
        "addition_embed_type": (None,),
        "resnet_time_scale_shift": ("default",),
        "resnet_skip_time_act": (False,),
        "resnet_out_scale_factor": (1.0,),
        "time_embedding_type": ("positional",),
        "time_embedding_dim": (None,),
        "time_embedding_act_fn": (None,),
        "timestep_post_act": (None,),
        "time_cond_proj_dim": (None,),
        "conv_in_kernel": (3,),
        "conv_out_kernel": (3,),
        "attention_type": ("default",),
        "cross_attention_norm": (None,),
    },
    # Heads and groups show in no shape; `ComfySizes` says what they may be.
    built=(
        "block_out_channels layers_per_block cross_attention_dim transformer_layers_per_block "
        "reverse_transformer_layers_per_block attention_head_dim use_linear_projection norm_num_groups norm_eps "
        "addition_time_embed_dim projection_class_embeddings_input_dim"
    ),
    # A default size, what only training from scratch does, precision, and a part of `addition_embed_type: text`.
    idle="sample_size dropout upcast_attention addition_embed_type_num_heads",
)
VAE = ConfigKeys(
    honoured={
        "in_channels": (3,),
        "out_channels": (3,),
        "down_block_types": ("DownEncoderBlock2D",),
        "up_block_types": ("UpDecoderBlock2D",),
        "act_fn": ("silu",),
        "mid_block_add_attention": (True,),
    },
    # The class builds the first; `KLAutoencoder` reads the others.
    built=(
        "block_out_channels layers_per_block norm_num_groups use_quant_conv use_post_quant_conv "
        "latent_channels scaling_factor shift_factor latents_mean latents_std"
    ),
    # A default size, and precision: the VAE is always in fp32 here.
    idle="sample_size force_upcast",
)
FLUX2_VAE = ConfigKeys(
    honoured={
        **VAE.honoured,
        # What ComfyUI takes for granted of the statistics, which are weights.
        "patch_size": ((2, 2),),
        "batch_norm_eps": (1e-4,),
    },
    built=(
        "block_out_channels decoder_block_out_channels layers_per_block norm_num_groups use_quant_conv "
        "use_post_quant_conv latent_channels"
    ),
    idle="sample_size force_upcast batch_norm_momentum",
)
QWEN_VAE = ConfigKeys(
    honoured={"input_channels": (3,)},
    built="base_dim z_dim dim_mult num_res_blocks attn_scales temperal_downsample latents_mean latents_std",
    idle="dropout",
)
# Of the schedulers that step through the same noise; which one it is matters in sampling only.
DIFFUSION_SCHEDULERS = (
    "DDIMScheduler DDIMParallelScheduler DDPMScheduler DDPMParallelScheduler PNDMScheduler EulerDiscreteScheduler "
    "EulerAncestralDiscreteScheduler DPMSolverMultistepScheduler DPMSolverSinglestepScheduler DPMSolverSDEScheduler "
    "LMSDiscreteScheduler HeunDiscreteScheduler KDPM2DiscreteScheduler KDPM2AncestralDiscreteScheduler "
    "DEISMultistepScheduler UniPCMultistepScheduler"
)
FLOW_SCHEDULERS = "FlowMatchEulerDiscreteScheduler FlowMatchHeunDiscreteScheduler"
DIFFUSION_NOISE = ConfigKeys(
    honoured={
        "_class_name": tuple(DIFFUSION_SCHEDULERS.split()),
        "num_train_timesteps": (TRAIN_TIMESTEPS,),
        "beta_start": (BETA_START,),
        "beta_end": (BETA_END,),
        "beta_schedule": ("scaled_linear",),
        "trained_betas": (None,),
        "prediction_type": ("epsilon", "v_prediction"),
        "rescale_betas_zero_snr": (False, True),
        # The timesteps that the network is told: others are logarithms of σ.
        "timestep_type": ("discrete",),
        "use_flow_sigmas": (False,),
        "predict_epsilon": (True,),
    },
    # Which noise levels a sampler walks, how it steps and clips; and the names of what is off.
    idle=(
        "clip_sample clip_sample_range sample_max_value thresholding dynamic_thresholding_ratio set_alpha_to_one "
        "steps_offset skip_prk_steps timestep_spacing variance_type interpolation_type use_karras_sigmas "
        "use_exponential_sigmas use_beta_sigmas sigma_min sigma_max final_sigmas_type solver_order algorithm_type "
        "solver_type lower_order_final euler_at_final use_lu_lambdas lambda_min_clipped predict_x0 disable_corrector "
        "solver_p flow_shift use_dynamic_shifting time_shift_type shift_terminal noise_sampler_seed tensor_format "
        "timestep_values"
    ),
)
FLOW_NOISE = ConfigKeys(
    honoured={
        "_class_name": tuple(FLOW_SCHEDULERS.split()),
        "num_train_timesteps": (TRAIN_TIMESTEPS,),
        "invert_sigmas": (False,),
    },
    # The shift of a sampler: Flux is trained without one, and ComfyUI samples it with its own.
    idle=(
        "shift use_dynamic_shifting base_shift max_shift base_image_seq_len max_image_seq_len shift_terminal "
        "time_shift_type stochastic_sampling use_karras_sigmas use_exponential_sigmas use_beta_sigmas"
    ),
)


def with_defaults(stated: Mapping[str, Any], cls: type | None) -> dict[str, Any]:
    """A configuration as diffusers' class takes it: what is not stated is the class's default."""
    parameters = inspect.signature(cls).parameters.items() if cls is not None else ()
    defaults = {
        name: parameter.default for name, parameter in parameters if parameter.default is not inspect.Parameter.empty
    }
    return {**defaults, **stated}


def require_honoured(stated: Mapping[str, Any], cls: type | None, keys: ConfigKeys, where: str, title: str) -> None:
    """Refuses a configuration with a value that is not honoured here.

    Args:
        stated: what the file says.
        cls: diffusers' class, whose defaults stand for what is not stated.
        keys: what is honoured.
        where: which file, for the error.
        title: of the family.

    Raises:
        SourceError: for the first such value.
    """
    whole = with_defaults(stated, cls)
    for key, values in keys.honoured.items():
        if key in whole and not _is_one_of(whole[key], values):
            raise unhonoured(key, whole[key], where, title, values, key in stated)
    for key in stated.keys() - keys.names:
        # What begins with "_" is about the file; null and false are keys of other versions that ask for nothing.
        if not key.startswith("_") and stated[key] not in (None, False):
            raise unhonoured(key, stated[key], where, title)


def unhonoured(
    key: str, value: Any, where: str, title: str, values: Iterable[Any] = (), is_stated: bool = True
) -> SourceError:
    """The error for a value that is not honoured: file, key, value, and the way out."""
    known = KNOWN_AS.get((key, value)) if isinstance(value, str | int | float) else None
    known = known or KEY_KNOWN_AS.get(key)
    allowed = " or ".join(_written(wanted) for wanted in values)
    reason = known or (f"where {title} has {allowed}" if 0 < len(allowed) < LONGEST else "which is not known here")
    by_default = "" if is_stated else " (diffusers' default, as the file states none)"
    return SourceError(
        f"{where}: `{key}` is `{_written(value)}`{by_default}, {reason}; give the {title} base that it was made from, "
        "or correct the file if it is wrong"
    )


def _is_one_of(value: Any, values: tuple[Any, ...]) -> bool:
    value = tuple(value) if isinstance(value, list) else value
    if any(type(value) is type(wanted) and value == wanted for wanted in values):
        return True
    if isinstance(value, int | float) and not isinstance(value, bool):
        return any(value == wanted and not isinstance(wanted, bool) for wanted in values)
    return isinstance(value, tuple) and bool(value) and all(_is_one_of(item, values) for item in value)


def _written(value: Any) -> str:
    """A value as the file has it."""
    return "null" if value is None else shown(list(value) if isinstance(value, tuple) else value)
