"""A CLIP model as a scorer: how near a picture is to its prompt. PickScore and HPS v2 are such models."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..support.errors import UserError
from .prompts import EvaluationPrompt
from .weights import LOADING, folder_digest, read_model_config, require_safetensors, require_whole

# OpenAI's CLIP, whose preprocessing its descendants kept; a folder's preprocessor_config.json may say otherwise.
CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


class ClipScorer:
    """The cosine of a CLIP model's embeddings of picture and prompt, times a factor. Its weights are loaded when first
    needed.

    Args:
        name: of the scorer.
        folder: a CLIPModel in transformers' format, with its tokenizer.
        factor: None takes the model's own exp(logit_scale).
        device: to score on, in float32.

    Raises:
        UserError: when the folder is not whole, or its weights are pickled only.
    """

    def __init__(self, name: str, folder: Path, factor: float | None, device: torch.device | str):
        self.name, self.folder, self.factor, self.device = name, folder, factor, torch.device(device)
        wanted = "a CLIPModel in transformers' format"
        kind = read_model_config(name, folder, wanted).get("model_type")
        if not (folder / "tokenizer_config.json").is_file():
            raise UserError(f"`--scorer` {name} is {folder}, which has no tokenizer_config.json; give {wanted}")
        if kind != "clip":
            raise UserError(
                f"`--scorer` {name} is {folder}, whose config.json says `model_type` {kind}; give a CLIPModel (`clip`)"
            )
        note = " (HPS v2's own .pt is one; give a conversion to transformers' format)" if name == "hpsv2" else ""
        require_safetensors(name, folder, note)

    @cached_property
    def fingerprint(self) -> str:
        return folder_digest(self.folder, str(self.factor))

    @cached_property
    def model(self) -> Any:
        from transformers import CLIPModel

        model, loading = CLIPModel.from_pretrained(self.folder, **LOADING)
        require_whole(self.name, self.folder, loading["missing_keys"])
        return model.eval().to(self.device)

    @cached_property
    def tokenizer(self) -> Any:
        from transformers import AutoTokenizer

        return AutoTokenizer.from_pretrained(self.folder, local_files_only=True)

    @torch.no_grad()
    def score(self, images: Sequence[Image.Image], prompts: Sequence[EvaluationPrompt]) -> Tensor:
        tokens = self.tokens([prompt.text for prompt in prompts])
        output = self.model(
            input_ids=tokens.input_ids.to(self.device),
            attention_mask=tokens.attention_mask.to(self.device),
            pixel_values=torch.stack([self.pixels(image) for image in images]).to(self.device),
        )
        cosine = (output.image_embeds * output.text_embeds).sum(dim=-1)  # [batch]; the model returns them normalised
        return (cosine * (self.model.logit_scale.exp() if self.factor is None else self.factor)).cpu()

    def tokens(self, texts: Sequence[str]) -> Any:
        """Token ids and their mask, each [texts, length], cut at the model's length."""
        length = self.model.config.text_config.max_position_embeddings
        return self.tokenizer(
            list(texts), padding="max_length", max_length=length, truncation=True, return_tensors="pt"
        )

    def pixels(self, image: Image.Image) -> Tensor:
        """CLIP's preprocessing with Pillow, whatever transformers' own processor would use: [3, side, side]."""
        side = self.model.config.vision_config.image_size
        scale = side / min(image.size)
        width, height = (max(side, int(length * scale)) for length in image.size)
        resized = image.convert("RGB").resize((width, height), Image.Resampling.BICUBIC)
        left, top = (width - side) // 2, (height - side) // 2
        levels = torch.from_numpy(np.array(resized.crop((left, top, left + side, top + side)))).permute(2, 0, 1) / 255
        mean, std = (torch.tensor(values)[:, None, None] for values in self._normalisation)
        return (levels - mean) / std

    @cached_property
    def _normalisation(self) -> tuple[Sequence[float], Sequence[float]]:
        file = self.folder / "preprocessor_config.json"
        stated = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
        return stated.get("image_mean", CLIP_MEAN), stated.get("image_std", CLIP_STD)
