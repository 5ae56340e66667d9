"""Bases of published sizes with random weights, and pairs of noise to train them on."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from torch import nn

from chats_train.families import adapter_of
from chats_train.settings.facts import FAMILIES

ROOT = Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT / "tests" / "train"))

import pictures  # noqa: E402  the tests' own helpers
import tiny_pipelines  # noqa: E402

CONFIGS = ROOT / "chats_train" / "families" / "configs"
# Of the families under a language model, whose own weights play no part in a step: the width of its text.
TEXT_WIDTHS = {"z_image": 2560, "qwen_image": 3584}


def save_base(family: str, folder: Path, tiny: bool, device: str) -> None:
    """A base in diffusers' arrangement, in bf16. SDXL is whole: its encoders are a part of the authors' step. Of the
    others the denoiser has the published size, and encoders are small."""
    torch.manual_seed(0)
    if not tiny and family in TEXT_WIDTHS:
        tiny_pipelines.LLM_WIDTHS[family] = TEXT_WIDTHS[family]
    tiny_pipelines.save_pipeline(family, folder)
    if tiny:
        return
    part = FAMILIES[family].denoiser_part
    for name, cls in adapter_of(FAMILIES[family]).part_classes().items():
        if family == "sdxl" or name == part:
            made(cls, family, name, device).save_pretrained(folder / name, max_shard_size="100GB")
            if device == "cuda":
                torch.cuda.empty_cache()


def made(cls: Any, family: str, part: str, device: str) -> nn.Module:
    """A part with torch's own first weights, made where that is fast."""
    path = CONFIGS / family / part / "config.json"
    config = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device(device):
            if part.startswith("text_encoder"):
                return cls(cls.config_class(**config))
            return cls.from_config(config)
    finally:
        torch.set_default_dtype(before)


def write_pairs(folder: Path, count: int, pixels: int) -> None:
    if not folder.exists():
        pictures.write_folders(folder, [f"{chr(97 + number)}" for number in range(count)], (pixels, pixels))
