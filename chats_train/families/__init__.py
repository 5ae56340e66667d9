"""Model families, one small adapter each.

Importing this is light: diffusers and transformers come when a base is opened.
"""

from __future__ import annotations

import importlib
from pathlib import Path

import torch

from chats.pair import NullPrompt, PredictionType

from ..settings.facts import FAMILIES, FamilyFacts
from .base import Denoiser, Family
from .prompts import Prompt
from .single_file import CheckpointSource
from .source_error import SourceError
from .sources import Source, open_folder

__all__ = ["Denoiser", "Family", "Prompt", "SourceError", "adapter_of", "load_family"]


def adapter_of(facts: FamilyFacts) -> type[Family]:
    """The class that speaks for a family's models."""
    module, _, name = facts.adapter.partition(":")
    adapter: type[Family] = getattr(importlib.import_module(f".{module}", __package__), name)
    return adapter


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
        name: of the family, as in the config.
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
    adapter = adapter_of(FAMILIES[name])
    try:
        adapter.part_classes()
    except ImportError as error:
        raise SourceError(
            f"`family` is {name}, whose classes are not installed ({error}); `pip install --upgrade diffusers "
            "transformers`"
        ) from error
    source = _open(adapter, pretrained_model, encoders, tokenizer, configs)
    return adapter(
        source,
        dtype=dtype,
        encoder_dtype=encoder_dtype,
        device=device,
        prediction_type=prediction_type,
        null_prompt=null_prompt,
    )


def _open(
    adapter: type[Family], pretrained_model: str, encoders: str | None, tokenizer: str | None, configs: str | None
) -> Source:
    facts, path = adapter.facts, Path(pretrained_model).expanduser()
    if not path.is_file():
        return open_folder(pretrained_model, "pretrained_model", facts.parts)
    other_parts = [part for part in facts.parts if part != facts.denoiser_part]
    return CheckpointSource(
        path,
        facts,
        adapter.denoiser_config,
        encoders=open_folder(encoders, "encoders", other_parts) if encoders else None,
        tokenizer=Path(tokenizer).expanduser() if tokenizer else None,
        configs=Path(configs).expanduser() if configs else None,
    )
