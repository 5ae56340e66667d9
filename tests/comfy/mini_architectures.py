"""Mini models of architectures that detection does not know at these sizes, from ComfyUI's own classes, with seeded
random weights, and the conditioning and latents that they take."""

from typing import NamedTuple

import comfy.model_management
import comfy.model_patcher
import comfy.supported_models as supported
import mini
import torch
from networks import CHROMA, FLUX, FLUX2, KREA2, LUMINA2, QWEN_IMAGE, WAN, Z_IMAGE
from running import result

NARROW = dict(
    model_channels=64,
    num_res_blocks=[1],
    channel_mult=[1],
    transformer_depth=[1],
    transformer_depth_output=[1, 1],
    transformer_depth_middle=1,
)
SD15 = dict(mini.SD15, **NARROW)
SD15_OF_TWO_WIDTHS = dict(
    SD15, channel_mult=[1, 2], num_res_blocks=[1, 1], transformer_depth=[1, 1], transformer_depth_output=[1] * 4
)
SDXL = dict(mini.SDXL, **NARROW)
FULL_DEPTH = dict(transformer_depth_output=[0, 0, 0, 2, 2, 2, 10, 10, 10], transformer_depth_middle=10)


class Architecture(NamedTuple):
    """ComfyUI's class, its configuration, a latent's shape and the widths of prompt and pooled prompt."""

    kind: str
    config: dict
    latent: tuple[int, ...]
    width: int
    pooled: int | None = None


KNOWN = {
    "sd15": Architecture("SD15", SD15, (4, 8, 8), 768),
    "sd15_v": Architecture("SD15", SD15, (4, 8, 8), 768),
    # With layers of twice the first one's channels.
    "sd15_of_two_widths": Architecture("SD15", SD15_OF_TWO_WIDTHS, (4, 8, 8), 768),
    "sdxl": Architecture("SDXL", SDXL, (4, 8, 8), 2048, 1280),
    "sdxl_v": Architecture("SDXL", SDXL, (4, 8, 8), 2048, 1280),
    # With the names of the real one.
    "sdxl_deep": Architecture("SDXL", {**mini.SDXL, **FULL_DEPTH, "model_channels": 64}, (4, 8, 8), 2048, 1280),
    "flux": Architecture("Flux", FLUX, (16, 8, 8), 4096, 768),
    "flux2": Architecture("Flux2", FLUX2, (128, 4, 4), 7680),
    "flux2_klein": Architecture(
        "Flux2", dict(FLUX2, guidance_embed=False, depth=1, depth_single_blocks=1), (128, 4, 4), 7680
    ),
    "krea2": Architecture("Krea2", KREA2, (16, 1, 8, 8), 480),
    "chroma": Architecture("Chroma", CHROMA, (16, 8, 8), 4096),
    # With the real one's number of modulations.
    "chroma_deep": Architecture("Chroma", dict(CHROMA, depth=28, hidden_dim=32, n_layers=1), (16, 8, 8), 4096),
    "qwen_image": Architecture("QwenImage", QWEN_IMAGE, (16, 1, 8, 8), 3584),
    "lumina2": Architecture("Lumina2", LUMINA2, (16, 8, 8), 2304),
    "z_image": Architecture("ZImage", Z_IMAGE, (16, 8, 8), 2560),
    # Of a width whose layers are as wide as diffusers'.
    "z_image_wide": Architecture("ZImage", dict(Z_IMAGE, dim=384, n_heads=3, n_kv_heads=3), (16, 8, 8), 2560),
    "wan": Architecture("WAN21_T2V", WAN, (16, 1, 8, 8), 4096),
}


def model(name: str, seed: int = 1, dtype: torch.dtype = torch.float32):
    """A ModelPatcher, of one of these, or SD3."""
    if name not in KNOWN:
        return mini.model(name, seed)
    known = KNOWN[name]
    config = getattr(supported, known.kind)(dict(known.config))
    config.set_inference_dtype(dtype, None)
    made = config.get_model({}, "")
    made.diffusion_model.load_state_dict(weights(made.diffusion_model, seed))
    patcher = comfy.model_patcher.ModelPatcher(
        made,
        load_device=comfy.model_management.get_torch_device(),
        offload_device=comfy.model_management.unet_offload_device(),
    )
    if name.endswith("_v"):
        from comfy_extras.nodes_model_advanced import ModelSamplingDiscrete

        (patcher,) = result(ModelSamplingDiscrete, patcher, "v_prediction", False)
    return patcher


def weights(module: torch.nn.Module, seed: int) -> dict[str, torch.Tensor]:
    """As ``mini.random_weights``, for networks whose norms have scales."""
    generator = torch.Generator().manual_seed(seed)
    found = {}
    for key, value in module.state_dict().items():
        noise = torch.randn(value.shape, generator=generator)
        is_scale = not key.endswith("bias") and any(word in key for word in ("norm", "scale"))
        scaled = noise / value[0].numel() ** 0.5 if value.ndim > 1 else noise * 0.05 + float(is_scale)
        found[key] = scaled.to(value.dtype)
    return found


def know_narrow() -> None:
    """Has ComfyUI detect SD1.5 and SDXL of 64 channels as it does those of 320."""
    for known in (supported.SD15, supported.SDXL):
        config = {**known.unet_config, "model_channels": NARROW["model_channels"]}
        supported.models.append(type(known.__name__, (known,), {"unet_config": config}))


def latent(name: str, seed: int) -> torch.Tensor:
    """[1, channels, …]"""
    if name not in KNOWN:
        return mini.latent(name, seed=seed)["samples"]
    return torch.randn(1, *KNOWN[name].latent, generator=torch.Generator().manual_seed(seed))


def conditioning(name: str, seed: int, tokens: int) -> list:
    if name not in KNOWN:
        return mini.conditioning(name, seed, tokens)
    generator, known = torch.Generator().manual_seed(seed), KNOWN[name]
    entry = {"pooled_output": torch.randn(1, known.pooled, generator=generator)} if known.pooled else {}
    return [[torch.randn(1, tokens, known.width, generator=generator), entry]]
