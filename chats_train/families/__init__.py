"""Model families, one small adapter each. Importing this is light; diffusers and transformers come when a base is
opened."""

from __future__ import annotations

from pathlib import Path

import torch

from chats.pair import NullPrompt, PredictionType

from .base import Denoiser, Family, Prompt
from .flux import Flux
from .sd3 import SD3
from .sd15 import SD15
from .sdxl import SDXL
from .single_file import CheckpointSource
from .sources import Source, SourceError, open_folder

FAMILIES: dict[str, type[Family]] = {family.name: family for family in (SD15, SDXL, SD3, Flux)}

__all__ = ["FAMILIES", "Denoiser", "Family", "Prompt", "SourceError", "load_family"]


def load_family(
    name: str,
    pretrained_model: str,
    *,
    encoders: str | None = None,
    tokenizer: str | None = None,
    configs: str | None = None,
    dtype: torch.dtype = torch.float32,
    encoder_dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    prediction_type: PredictionType | None = None,
    null_prompt: NullPrompt | None = None,
) -> Family:
    """A family over a base model. Nothing is loaded yet but headers and configurations.

    Args:
        name: `sd15`, `sdxl`, `sd3` or `flux`.
        pretrained_model: a diffusers folder, a hub id (then its files are fetched), or a .safetensors checkpoint.
        encoders: with a checkpoint, a diffusers folder or hub id for every part but the denoiser.
        tokenizer: with a checkpoint, a folder with CLIP's vocab.json and merges.txt; by default ComfyUI's own.
        configs: with a checkpoint, a folder of configurations in diffusers' arrangement instead of the bundled ones.
        dtype, encoder_dtype, device, prediction_type, null_prompt: see :class:`Family`.

    Raises:
        SourceError: when the base cannot be used as this family.
    """
    if name not in FAMILIES:
        raise SourceError(f"`family` is `{name}`; known are {', '.join(FAMILIES)}")
    family = FAMILIES[name]
    source = _open(family, pretrained_model, encoders, tokenizer, configs)
    return family(
        source,
        dtype=dtype,
        encoder_dtype=encoder_dtype,
        device=device,
        prediction_type=prediction_type,
        null_prompt=null_prompt,
    )


def _open(
    family: type[Family], pretrained_model: str, encoders: str | None, tokenizer: str | None, configs: str | None
) -> Source:
    path = Path(pretrained_model).expanduser()
    if not path.is_file():
        return open_folder(pretrained_model, "pretrained_model", family.parts())
    other_parts = [part for part in family.parts() if part != family.denoiser_part]
    return CheckpointSource(
        path,
        family.checkpoint,
        encoders=open_folder(encoders, "encoders", other_parts) if encoders else None,
        tokenizer=Path(tokenizer).expanduser() if tokenizer else None,
        configs=Path(configs).expanduser() if configs else None,
    )
