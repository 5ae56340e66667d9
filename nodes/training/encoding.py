"""Latents and encoded prompts, made once by the connected VAE and CLIP and kept on the disk."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ...chats.buckets import Bucket
from ...chats.files import replacing
from .errors import Conditioning
from .ordinary import ordinary
from .rated_pairs import Picture
from .writing import writing

# Part of every key: raise it when the same input would be encoded differently than before.
VERSION = 1
# A prompt that names a file of its own, which may change.
EMBEDDING = "embedding:"


class NotStorable(TypeError):
    """An encoded prompt that holds what no file of ours can."""


class Encoder:
    """Encodes by the connected models, or reads what they gave before.

    Args:
        clip_digest, vae_digest: what the models are, see :mod:`.digests`.
        folder: of the files; one each, named by content and encoder.
    """

    def __init__(self, clip: Any, vae: Any, clip_digest: str, vae_digest: str, folder: Path):
        self.clip, self.vae, self.clip_digest, self.vae_digest, self.folder = clip, vae, clip_digest, vae_digest, folder

    def latent(self, picture: Picture, bucket: Bucket) -> Tensor:
        """[1, channels, …] as the VAE gives it."""
        key = f"latent {self.vae_digest} {picture.sha256} {bucket.width} {bucket.height}"
        return self._kept(key, lambda: self.vae.encode(picture.pixels(bucket)))

    def prompt(self, text: str) -> Conditioning:
        """As CLIPTextEncode gives it."""

        def encode() -> Conditioning:
            return self.clip.encode_from_tokens_scheduled(self.clip.tokenize(text))

        if EMBEDDING in text:
            return ordinary(encode())
        return self._kept(f"prompt {self.clip_digest} {text}", encode)

    def _kept(self, key: str, encode: Callable[[], Any]) -> Any:
        path = self.folder / f"{hashlib.sha256(f'{VERSION} {key}'.encode()).hexdigest()}.safetensors"
        found = _read(path)
        if found is not None:
            return found
        value = ordinary(encode())
        tensors: dict[str, Tensor] = {}
        try:
            structure = _taken_apart(value, tensors)
        except NotStorable:
            return value
        with writing(self.folder), replacing(path) as temporary:
            save_file(tensors, temporary, metadata={"structure": json.dumps(structure)})
        return value


def _read(path: Path) -> Any:
    """What a file holds; None where there is none that is whole."""
    if not path.is_file():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            structure = json.loads((file.metadata() or {})["structure"])
            return _put_together(structure, {key: file.get_tensor(key) for key in file.keys()})  # noqa: SIM118
    except (SafetensorError, ValueError, KeyError, OSError):
        return None  # it is made anew


def _taken_apart(value: Any, tensors: dict[str, Tensor]) -> Any:
    """``value`` in JSON's terms, its tensors in ``tensors``."""
    if isinstance(value, Tensor):
        name = str(len(tensors))
        tensors[name] = value.cpu().contiguous()
        return {"tensor": name}
    if isinstance(value, dict) and all(isinstance(key, str) for key in value):
        return {"dict": {key: _taken_apart(each, tensors) for key, each in value.items()}}
    if type(value) in (list, tuple):
        return {type(value).__name__: [_taken_apart(each, tensors) for each in value]}
    if value is None or isinstance(value, bool | int | float | str):
        return {"value": value}
    raise NotStorable(type(value).__name__)


def _put_together(structure: dict[str, Any], tensors: dict[str, Tensor]) -> Any:
    ((kind, held),) = structure.items()
    if kind == "tensor":
        return tensors[held]
    if kind == "dict":
        return {key: _put_together(each, tensors) for key, each in held.items()}
    if kind in ("list", "tuple"):
        values = [_put_together(each, tensors) for each in held]
        return values if kind == "list" else tuple(values)
    return held
