"""What a loaded model is, told from samples of all its weights: a file's hash is not to be had from a MODEL.

Two trainings of a network differ nearly everywhere, so a few numbers of each weight tell them apart. Patches, such as
LoRAs, are a part of what a model is.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any

import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor

SAMPLES = 32


def model_digest(patcher: ModelPatcher) -> str:
    """SHA-256 of the model with its patches, the same in every session, hexadecimal."""
    digest = hashlib.sha256()
    samples: list[Tensor] = []
    for name, weight, computed in _weights(patcher):
        digest.update(f"{name} {tuple(weight.shape)} {computed or weight.dtype}".encode())
        samples.append(_sample(weight, computed))
    _add(digest, patcher.patches, samples)
    _add(digest, {key: type(patch) for key, patch in patcher.object_patches.items()}, samples)
    digest.update(torch.cat(samples).cpu().numpy().tobytes() if samples else b"")
    return digest.hexdigest()


def tensors_digest(value: Any) -> str:
    """SHA-256 of tensors in lists and dicts, by all their numbers."""
    digest = hashlib.sha256()
    tensors: list[Tensor] = []
    _add(digest, value, tensors, whole=True)
    for tensor in tensors:
        digest.update(tensor.cpu().numpy().tobytes())
    return digest.hexdigest()


def _weights(patcher: ModelPatcher) -> Iterator[tuple[str, Tensor, torch.dtype | None]]:
    """The weights as they are without patches that a load may have put into them, each in the precision that it is
    computed in: under dynamic VRAM some are in their file's until they are loaded."""
    modules = dict(patcher.model.named_modules())
    for named in (patcher.model.named_parameters(), patcher.model.named_buffers()):
        for name, weight in named:
            kept = patcher.backup.get(name)
            found = weight if kept is None else getattr(kept, "weight", kept)
            place, _, parameter = name.rpartition(".")
            yield name, found, getattr(modules[place], f"{parameter}_comfy_model_dtype", None)


def _sample(tensor: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """The bytes of some numbers of a tensor, or of what a quantised one holds, evenly spaced; of the first, in
    ``dtype``."""
    raw = getattr(tensor, "_qdata", tensor).detach().as_subclass(Tensor).reshape(-1)
    places = torch.linspace(0, max(0, raw.numel() - 1), min(SAMPLES, raw.numel()), dtype=torch.float64).long()
    picked = raw[places.to(raw.device)]
    plain = not hasattr(tensor, "_qdata") and raw.is_floating_point() and raw.element_size() > 1
    return _bytes(picked.to(dtype) if plain and dtype is not None else picked).cpu()


def _bytes(tensor: Tensor) -> Tensor:
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8)


def _add(digest: Any, value: Any, tensors: list[Tensor], whole: bool = False) -> None:
    """Adds what is no tensor to a digest, and tensors' bytes to a list."""
    if isinstance(value, Tensor):
        digest.update(f"{tuple(value.shape)} {value.dtype}".encode())
        tensors.append(_bytes(value) if whole else _sample(value))
    elif isinstance(value, dict):
        for key in sorted(value, key=str):
            digest.update(str(key).encode())
            _add(digest, value[key], tensors, whole)
    elif isinstance(value, list | tuple):
        digest.update(f"{len(value)}".encode())
        for each in value:
            _add(digest, each, tensors, whole)
    elif hasattr(value, "weights"):  # ComfyUI's LoRAs and their kin
        digest.update(type(value).__name__.encode())
        _add(digest, value.weights, tensors, whole)
    elif value is None or isinstance(value, bool | int | float | str | type):
        digest.update(repr(value).encode())
    else:
        digest.update(type(value).__qualname__.encode())
