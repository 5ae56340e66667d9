"""What is trained on: files of random weights in bf16 at an architecture's real widths, which ComfyUI's own loader
loads, and what is connected beside them.

The VAE is a real small one with random weights. A text encoder is not loaded: embeddings of its shape are drawn, by the
text.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import comfy.memory_management
import comfy.model_management
import comfy.model_patcher
import comfy.ops
import comfy.sd
import mini
import torch
from conftest import pack_module
from mini_architectures import FULL_DEPTH
from PIL import Image
from safetensors.torch import save_file
from serving import vae_weights

PAIRS = 12
TOKENS = 77
# What the weights are held in.
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp8": torch.float8_e4m3fn}
# SDXL's own, and Z-Image's: ComfyUI knows them by these.
SDXL = {**mini.SDXL, **FULL_DEPTH, "channel_mult": [1, 2, 4]}
Z_IMAGE = dict(
    patch_size=2,
    in_channels=16,
    dim=3840,
    n_layers=30,
    qk_norm=True,
    cap_feat_dim=2560,
    n_heads=30,
    n_kv_heads=30,
    axes_dims=[32, 48, 48],
    axes_lens=[1536, 512, 512],
    rope_theta=256.0,
    ffn_dim_multiplier=8 / 3,
    z_image_modulation=True,
    time_scale=1000.0,
    pad_tokens_multiple=32,
)


def unet(config: dict) -> torch.nn.Module:
    from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel

    return UNetModel(**config, device="meta", dtype=torch.bfloat16, operations=comfy.ops.disable_weight_init)


def z_image(layers: int) -> torch.nn.Module:
    from comfy.ldm.lumina.model import NextDiT

    config = {**Z_IMAGE, "n_layers": layers}
    return NextDiT(**config, device="meta", dtype=torch.bfloat16, operations=comfy.ops.disable_weight_init)


@dataclass(frozen=True)
class Kind:
    """A model: its network, or its weights; its latents' channels, its prompts' width and pooled width."""

    network: Callable[[], torch.nn.Module] | None
    channels: int
    width: int
    pooled: int | None


KINDS = {
    "sdxl": Kind(lambda: unet(SDXL), 4, 2048, 1280),
    "z_image": Kind(lambda: z_image(30), 16, 2560, None),
    # Short ones, of the same width, for a first look.
    "z_image_short": Kind(lambda: z_image(2), 16, 2560, None),
    "mini_sdxl": Kind(lambda: unet(mini.SDXL), 4, 2048, 1280),
    "mini_sd3": Kind(None, 16, 4096, 2048),
}


def make(kind: str, path: Path, device: str) -> int:
    """Writes a file of random weights; its parameters."""
    network = KINDS[kind].network
    if network is None:
        state = {key: value.bfloat16() for key, value in mini.sd3_weights(1).items()}
    else:
        generator = torch.Generator(device).manual_seed(1)
        with _weights_from_the_start():
            shapes = {key: value.shape for key, value in network().state_dict().items()}
        state = {key: drawn(key, shape, generator) for key, shape in shapes.items()}
    save_file(state, path)
    return sum(value.numel() for value in state.values())


@contextmanager
def _weights_from_the_start() -> Iterator[None]:
    """Under dynamic VRAM, ComfyUI's layers get their weights when a file is loaded."""
    before = comfy.memory_management.aimdo_enabled
    comfy.memory_management.aimdo_enabled = False
    try:
        yield
    finally:
        comfy.memory_management.aimdo_enabled = before


def drawn(key: str, shape: torch.Size, generator: torch.Generator) -> torch.Tensor:
    """Normal, scaled by fan-in; scales of norms near one, and biases near zero."""
    noise = torch.empty(shape, dtype=torch.bfloat16, device=generator.device).normal_(generator=generator)
    if len(shape) > 1:
        return (noise / noise[0].numel() ** 0.5).cpu()
    return (noise * 0.05 + float("norm" in key and key.endswith("weight"))).cpu()


class Clip:
    """Stands for a text encoder."""

    def __init__(self, kind: str):
        cpu, weights = torch.device("cpu"), torch.nn.Module()
        weights.weight = torch.nn.Parameter(torch.ones(3), requires_grad=False)
        self.kind = kind
        self.patcher = comfy.model_patcher.ModelPatcher(weights, load_device=cpu, offload_device=cpu)

    def tokenize(self, text: str) -> str:
        return text

    def encode_from_tokens_scheduled(self, text: str) -> list:
        kind = KINDS[self.kind]
        seed = int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big")
        generator = torch.Generator().manual_seed(seed)
        entry = {"pooled_output": torch.randn(1, kind.pooled, generator=generator)} if kind.pooled else {}
        return [[torch.randn(1, TOKENS, kind.width, generator=generator), entry]]


def connected(kind: str, path: Path, precision: str, cpu: bool) -> dict[str, Any]:
    """MODEL, CLIP and VAE as loaders give them; the network computes in the precision of its weights, or in bf16 where
    that has eight bits, on the CPU too."""
    # Said, since ComfyUI takes SDXL in fp16 else, also from a file in bf16.
    options = {"dtype": DTYPES[precision]}
    with torch.inference_mode(), _as_on_a_card(precision) if cpu else nullcontext():
        vae = comfy.sd.VAE(sd=vae_weights(4, latent_channels=KINDS[kind].channels))
        model = comfy.sd.load_diffusion_model(str(path), model_options=options)
        return {"model": model, "clip": Clip(kind), "vae": vae}


@contextmanager
def _as_on_a_card(precision: str) -> Iterator[None]:
    """On the CPU, ComfyUI would compute in float32 with weights of any precision."""
    before = comfy.model_management.unet_manual_cast
    computed = torch.bfloat16 if precision == "fp8" else None
    comfy.model_management.unet_manual_cast = lambda *args, **kwargs: computed
    try:
        yield
    finally:
        comfy.model_management.unet_manual_cast = before


def rate(folder: Path, pixels: int) -> None:
    """A data set of pairs of smooth noise, each its own prompt."""
    dataset = pack_module("chats.taste.dataset").TasteDataset(folder)
    for index in range(PAIRS):
        left, right = (
            dataset.add_candidate(picture(2 * index + side, pixels), f"prompt {index}")[0] for side in range(2)
        )
        dataset.vote(f"{index:016x}", left, right, "left", "default")


def picture(seed: int, pixels: int) -> bytes:
    coarse = torch.rand(16, 16, 3, generator=torch.Generator().manual_seed(seed)) * 255
    image = Image.frombytes("RGB", (16, 16), coarse.byte().numpy().tobytes()).resize((pixels, pixels))
    stream = io.BytesIO()
    image.save(stream, "PNG", compress_level=1)
    return stream.getvalue()
