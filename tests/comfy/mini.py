"""Mini models that real ComfyUI detects as SD1.5 or SD3, with seeded random weights, and the conditioning they take."""

import json
import math
from collections.abc import Sequence
from pathlib import Path

import comfy.sd
import torch

DTYPES = {torch.float16: "F16", torch.float8_e4m3fn: "F8_E4M3"}

SD15 = dict(
    image_size=32,
    in_channels=4,
    model_channels=320,
    out_channels=4,
    num_res_blocks=[1],
    channel_mult=[1],
    num_heads=8,
    use_spatial_transformer=True,
    transformer_depth=[1],
    transformer_depth_output=[1, 1],
    transformer_depth_middle=1,
    context_dim=768,
    legacy=False,
)
# SDXL's depths on the way down, which ComfyUI knows it by, at a quarter of its widths.
SDXL = dict(
    image_size=32,
    in_channels=4,
    model_channels=320,
    out_channels=4,
    num_res_blocks=[2, 2, 2],
    channel_mult=[1, 1, 1],
    num_head_channels=64,
    use_spatial_transformer=True,
    use_linear_in_transformer=True,
    transformer_depth=[0, 0, 2, 2, 10, 10],
    transformer_depth_output=[0, 0, 0, 1, 1, 1, 1, 1, 1],
    transformer_depth_middle=1,
    context_dim=2048,
    num_classes="sequential",
    adm_in_channels=2816,
    legacy=False,
)


def random_weights(module: torch.nn.Module, seed: int) -> dict[str, torch.Tensor]:
    """Normal weights scaled by fan-in; every bias and norm is set, since an unset one is NaN on some machines."""
    generator = torch.Generator().manual_seed(seed)
    weights = {}
    for key, value in module.state_dict().items():
        noise = torch.empty(value.shape).normal_(generator=generator)
        if value.ndim <= 1:
            weights[key] = noise * 0.05 + (1.0 if "norm" in key and key.endswith("weight") else 0.0)
        else:
            weights[key] = noise / value[0].numel() ** 0.5
    return weights


def unet_weights(config: dict, seed: int) -> dict[str, torch.Tensor]:
    """Native (LDM) keys of a UNet, without prefix."""
    from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel
    from comfy.ops import disable_weight_init

    return random_weights(UNetModel(**config, device="meta", dtype=torch.float32, operations=disable_weight_init), seed)


def sd3_weights(
    seed: int, qk_norm: str | None = None, context: int = 4096, pooled: int = 2048, depth: int = 2
) -> dict[str, torch.Tensor]:
    """Native keys of an SD3 transformer, which has a head for each block, without prefix; SD3.5 normalizes q and k
    (`rms`). ``context`` and ``pooled`` are the widths of the encodings that it takes."""
    from comfy.ldm.modules.diffusionmodules.mmdit import OpenAISignatureMMDITWrapper
    from comfy.ops import disable_weight_init

    model = OpenAISignatureMMDITWrapper(
        input_size=None,
        pos_embed_scaling_factor=None,
        pos_embed_offset=None,
        pos_embed_max_size=16,
        patch_size=2,
        in_channels=16,
        depth=depth,
        num_patches=256,
        qk_norm=qk_norm,
        adm_in_channels=pooled,
        context_embedder_config={
            "target": "torch.nn.Linear",
            "params": {"in_features": context, "out_features": 64 * depth},
        },
        device="meta",
        dtype=torch.float32,
        operations=disable_weight_init,
    )
    return random_weights(model, seed)


def weights(kind: str, seed: int) -> dict[str, torch.Tensor]:
    """Fresh weights of a kind: sd15, sd3, sd3_5."""
    if kind.startswith("sd3"):
        return sd3_weights(seed, "rms" if kind == "sd3_5" else None)
    return unet_weights(SD15, seed)


def write_zeros(path: Path, shapes: dict[str, Sequence[int]], dtype: torch.dtype, firsts: bytes = b"") -> None:
    """A safetensors file of zeros, of which only the header takes room on a disk; ``firsts`` are first bytes of the
    tensors, in turn."""
    header, starts, end = {}, [], 0
    for key, shape in shapes.items():
        starts.append(end)
        end += math.prod(shape) * dtype.itemsize
        header[key] = {"dtype": DTYPES[dtype], "shape": list(shape), "data_offsets": [starts[-1], end]}
    content = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(len(content).to_bytes(8, "little") + content)
        file.truncate(8 + len(content) + end)
        for start, first in zip(starts, firsts, strict=False):
            file.seek(8 + len(content) + start)
            file.write(bytes([first]))


def model(kind: str, seed: int):
    """A loaded ModelPatcher, its weights its own."""
    patcher = comfy.sd.load_diffusion_model_state_dict(weights(kind, seed))
    assert patcher is not None, f"ComfyUI did not detect the mini {kind}"
    return patcher


def conditioning(kind: str, seed: int, tokens: int = 77, **options) -> list:
    """One entry of random embeddings with the widths that the kind's text encoders give."""
    width, pooled = {"sd15": (768, None), "sdxl": (2048, 1280), "sd3": (4096, 2048)}[kind.split("_")[0]]
    generator = torch.Generator().manual_seed(seed)
    entry = dict(options)
    if pooled is not None:
        entry["pooled_output"] = torch.randn(1, pooled, generator=generator)
    return [[torch.randn(1, tokens, width, generator=generator), entry]]


def latent(kind: str, batch: int = 1, size: int | tuple[int, int] = 8, seed: int | None = None) -> dict:
    """A latent of size × size or of (height, width); empty unless seeded."""
    shape = (batch, 16 if kind.startswith("sd3") else 4, *((size, size) if isinstance(size, int) else size))
    samples = torch.zeros(shape) if seed is None else torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    return {"samples": samples}


def relative_error(actual: torch.Tensor, expected: torch.Tensor) -> float:
    """‖actual − expected‖ / ‖expected‖; infinite when anything is not finite."""
    if not (torch.isfinite(actual).all() and torch.isfinite(expected).all()):
        return float("inf")
    return (torch.linalg.vector_norm(actual - expected) / torch.linalg.vector_norm(expected)).item()
