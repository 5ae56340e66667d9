"""The colour of an object, by a CLIP model: the object on grey, cut out by its box, against the benchmark's prompts."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from ..clip_scorer import ClipScorer
from ..weights import open_folder
from .geneval import COLOURS, Detection

NAME = "geneval's CLIP"
# Of each, the embedding's direction; their mean's direction is the colour's.
TEMPLATES = ("a photo of a {colour} {name}", "a photo of a {colour}-colored {name}", "a photo of a {colour} object")
# What stands where the object is not.
GREY = (0x99, 0x99, 0x99)


class ColourNamer:
    """Names colours, in float32. The benchmark's own model is OpenAI's ViT-L/14.

    Args:
        source: a folder or a hub id of a CLIPModel in transformers' format.

    Raises:
        UserError: as :class:`..clip_scorer.ClipScorer` does.
    """

    def __init__(self, source: str, device: torch.device | str):
        self.clip = ClipScorer(NAME, open_folder(NAME, source), 1.0, device)
        self._directions: dict[str, Tensor] = {}

    @cached_property
    def fingerprint(self) -> str:
        return self.clip.fingerprint

    @torch.no_grad()
    def name(self, image: Image.Image, name: str, objects: Sequence[Detection]) -> list[str]:
        """The colour of each object of a class, out of the benchmark's ten."""
        model = self.clip.model
        pixels = torch.stack([self.clip.pixels(cut_out(image, each)) for each in objects]).to(self.clip.device)
        embeddings = model.visual_projection(model.vision_model(pixel_values=pixels).pooler_output)
        cosines = F.normalize(embeddings, dim=-1) @ self._colour_directions(name).T  # [objects, colours]
        return [COLOURS[index] for index in cosines.argmax(dim=-1).tolist()]

    def _colour_directions(self, name: str) -> Tensor:
        """Of every colour of a class, [colours, dim], of length 1."""
        if name not in self._directions:
            model = self.clip.model
            tokens = self.clip.tokens([form.format(colour=each, name=name) for each in COLOURS for form in TEMPLATES])
            encoded = model.text_model(
                input_ids=tokens.input_ids.to(self.clip.device),
                attention_mask=tokens.attention_mask.to(self.clip.device),
            )
            each = F.normalize(model.text_projection(encoded.pooler_output), dim=-1)
            self._directions[name] = F.normalize(each.unflatten(0, (len(COLOURS), -1)).mean(dim=1), dim=-1)
        return self._directions[name]


def cut_out(image: Image.Image, detection: Detection) -> Image.Image:
    """An object as its colour is looked at: its box of the picture, grey where its mask is not."""
    image = image.convert("RGB")
    masked = Image.composite(image, Image.new("RGB", image.size, GREY), Image.fromarray(detection.mask))
    left, top, right, bottom = map(round, detection.box)
    return masked.crop((left, top, right, bottom))
