"""What a run will take, before anything heavy: memory of weights, gradients and optimizer, and room on the disk. Pure
arithmetic."""

from __future__ import annotations

import math
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from chats.objective import OBJECTIVES

from ..data import PairDataset
from ..data.summary import images_by_bucket, prompt_bytes, prompt_count
from ..runs.quantization import IN_BLOCKS, QUANTIZED_BYTES
from ..settings.config import RunConfig
from ..support.dtypes import TORCH_DTYPES, forward_dtype

# Bytes of optimizer state per trained parameter: AdamW's two moments in the weights' dtype, in 8 bits, and Adafactor's
# row and column sums, which are next to nothing.
MOMENTS = {"adamw": 2, "adamw8bit": 2, "adafactor": 0}
FP32_BYTES = 4


@dataclass(frozen=True)
class ModelSize:
    """Parameters of the denoiser, of its blocks' linear layers, and of one member's adapter on it; how its latents
    look, and how many numbers the embeddings of one caption have.

    ``own_lengths`` are, where captions have lengths of their own, the longest and how many tokens are put around each:
    ``prompt_numbers`` is then that of the longest.
    """

    denoiser: int
    blocks: int
    adapter: int
    latent_channels: int
    pixels_per_latent: int
    prompt_numbers: int
    own_lengths: tuple[int, int] | None = None


def adapter_parameters(shapes: Mapping[str, tuple[int, ...]], targets: tuple[str, ...], rank: int) -> int:
    """Parameters of a LoRA: rank · (inputs + outputs) for each targeted layer; ``shapes`` by key, of the denoiser."""
    keys = [key for key in shapes if key.endswith(tuple(f"{target}.weight" for target in targets))]
    return sum(rank * (shapes[key][0] + math.prod(shapes[key][1:])) for key in keys)


def block_parameters(shapes: Mapping[str, tuple[int, ...]]) -> int:
    """Parameters of the linear layers of a denoiser's blocks, which can be quantized."""
    return sum(
        math.prod(shape)
        for key, shape in shapes.items()
        if key.endswith(".weight") and len(shape) == 2 and IN_BLOCKS.fullmatch(key.removesuffix(".weight"))
    )


def memory_bytes(config: RunConfig, size: ModelSize, method: str, weight_dtype: str, quantization: str = "none") -> int:
    """Bytes on the GPU of all weights, gradients and optimizer states of one method; activations come on top.

    full: each trained member has weights, gradients and states, and the reference stays as a frozen copy in
    their precision. lora: one
    frozen base, which is the reference too, its blocks quantized or not, and each member's adapter in fp32.
    """
    objective = OBJECTIVES[config.objective]
    if method == "lora":
        adapters = objective.models * size.adapter * _trained_bytes(config, FP32_BYTES)
        width, quantized = forward_dtype(config.mixed_precision).itemsize, QUANTIZED_BYTES.get(quantization)
        saved = 0 if quantized is None else size.blocks * (width - quantized)
        return size.denoiser * width - int(saved) + adapters
    width = TORCH_DTYPES[weight_dtype].itemsize
    reference = size.denoiser * width if objective.needs_reference else 0
    return objective.models * size.denoiser * _trained_bytes(config, width) + reference


def checkpoint_bytes(config: RunConfig, size: ModelSize) -> int:
    """Bytes of one checkpoint: members, their optimizer states and averages."""
    members = OBJECTIVES[config.objective].models
    if config.training_method == "lora":
        return members * size.adapter * (_trained_bytes(config, FP32_BYTES) - FP32_BYTES)
    width = TORCH_DTYPES[config.weight_dtype].itemsize
    return members * size.denoiser * (_trained_bytes(config, width) - width)


def cache_bytes(config: RunConfig, size: ModelSize, dataset: PairDataset) -> int:
    """Bytes of all latents (fp32) and prompt embeddings of a data set."""
    areas = sum(
        images * (bucket.width // size.pixels_per_latent) * (bucket.height // size.pixels_per_latent)
        for bucket, images in images_by_bucket(dataset.samples).items()
    )
    width = forward_dtype(config.mixed_precision).itemsize
    return areas * size.latent_channels * FP32_BYTES + _embedding_bytes(size, dataset, width)


def _embedding_bytes(size: ModelSize, dataset: PairDataset, width: int) -> int:
    """Bytes of all captions' embeddings, and of the null prompt's, which is always there and no pair's."""
    if size.own_lengths is None:
        return (prompt_count(dataset.samples) + 1) * size.prompt_numbers * width
    longest, around = size.own_lengths
    # A token is a byte of text at least.
    tokens = (prompt_bytes(dataset.samples) + around).clip(max=longest).sum().item() + around
    # A byte says of each that it is no padding.
    return tokens * (size.prompt_numbers // longest * width + 1)


def disk_of(folder: Path) -> tuple[int, int]:
    """The number of the disk that a folder is on, or will be, and the bytes free there."""
    there = next(parent for parent in (folder, *folder.absolute().parents) if parent.is_dir())
    return there.stat().st_dev, shutil.disk_usage(there).free


def folder_bytes(folder: Path) -> int:
    """Bytes of all files in a folder and below; 0 when it is not there."""
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def _trained_bytes(config: RunConfig, width: int) -> int:
    """Bytes per trained parameter, its weight being ``width`` wide: weight, gradient, moments and, where kept, the fp32
    average."""
    moments = MOMENTS[config.optimizer] * (1 if config.optimizer == "adamw8bit" else width)
    return width + width + moments + (FP32_BYTES if config.ema_decay is not None else 0)
