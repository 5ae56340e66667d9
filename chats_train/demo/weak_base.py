"""The demo's weak base: the bundled one with a difference added to its denoiser, which is bundled too.

The bundled base draws most prompts right without guidance. The weak one needs guidance, as the bases that people have
do. `make_weak_base` made the difference; it is kept in 8 bits, a scale for each row.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

BASE = Path(__file__).parent / "base"
DIFFERENCE = Path(__file__).parent / "weak_base.safetensors"
DENOISER = Path("unet") / "diffusion_pytorch_model.safetensors"
SCALE = ".scale"
LEVELS = 127


def write_weak_base(folder: Path, difference: Path = DIFFERENCE) -> Path:
    """Writes the weak base as a folder of its own in diffusers' form, 8 MB, and returns it.

    Raises:
        FileExistsError: when the folder is there already.
    """
    shutil.copytree(BASE, folder)
    weights, stored = load_file(BASE / DENOISER), load_file(difference)
    for name, weight in weights.items():
        steps, scale = stored[name].float(), stored[name + SCALE]
        weights[name] = (weight.float() + _rows(steps, scale)).to(weight.dtype)
    save_file(weights, folder / DENOISER, metadata={"format": "pt"})
    return folder


def write_difference(weights: dict[str, Tensor], path: Path = DIFFERENCE) -> None:
    """Writes the difference of a denoiser's weights to the bundled one's."""
    base, stored = load_file(BASE / DENOISER), {}
    for name, weight in weights.items():
        difference = weight.float() - base[name].float()
        scale = (difference.flatten(1) if difference.dim() > 1 else difference[None]).abs().amax(1) / LEVELS
        stored[name] = _rows(difference, 1 / scale.clamp(min=1e-12)).round().to(torch.int8)
        stored[name + SCALE] = scale
    save_file(stored, path)


def _rows(tensor: Tensor, scale: Tensor) -> Tensor:
    """A tensor with each row times its scale; a vector is one row."""
    return tensor * scale.view(-1, *[1] * (tensor.dim() - 1)) if tensor.dim() > 1 else tensor * scale
