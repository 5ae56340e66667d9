"""Objects in a picture, by transformers' Mask2Former on COCO's classes.

The benchmark's own segmenter is the same network in mmdet 2. Picture and masks are resized here as mmdet does it, and
not as transformers' processor does: the published folders' preprocessor_config.json would shrink every picture to 384 ×
384, and its masks pass through 384 × 384, too.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from ...support.errors import UserError
from ..weights import LOADING, open_folder, read_model_config, require_safetensors, require_whole
from .geneval import CLASSES, CONFIDENCE, Detection

NAME = "geneval's segmenter"
WANTED = (
    "a Mask2Former for instances on COCO in transformers' format, such as facebook/mask2former-swin-small-coco-instance"
)
# What COCO, and those who named its classes before, call what the benchmark calls otherwise.
ALIASES = {
    "mouse": "computer mouse",
    "remote": "tv remote",
    "keyboard": "computer keyboard",
    "motorbike": "motorcycle",
    "aeroplane": "airplane",
    "sofa": "couch",
    "pottedplant": "potted plant",
    "diningtable": "dining table",
    "tvmonitor": "tv",
}
# mmdet's test settings: the shorter side is 800 pixels, unless the longer one is then above 1333; a multiple of 32.
SHORT_SIDE, LONG_SIDE, MULTIPLE = 800, 1333, 32
MEAN, STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)
PADDING = 128
# Pairs of a query and a class that may be objects.
CANDIDATES = 100


class Segmenter:
    """Detects COCO's objects. Its weights are loaded when first needed, in float32.

    Args:
        source: a folder or a hub id.

    Raises:
        UserError: when it is no such model, not whole, or scipy is missing, which transformers wants for it.
    """

    def __init__(self, source: str, device: torch.device | str):
        self.folder, self.device = open_folder(NAME, source), torch.device(device)
        config = read_model_config(NAME, self.folder, WANTED)
        if config.get("model_type") != "mask2former":
            raise UserError(
                f"`--scorer` {NAME} is {self.folder}, whose config.json says `model_type` {config.get('model_type')}; "
                f"give {WANTED}"
            )
        self.names = _class_names(self.folder, config.get("id2label") or {})
        require_safetensors(NAME, self.folder)
        if importlib.util.find_spec("scipy") is None:
            raise UserError(f"`--scorer` {NAME} needs the package scipy, which is missing; `pip install scipy`")

    @cached_property
    def model(self) -> Any:
        from transformers import Mask2FormerForUniversalSegmentation

        model, loading = Mask2FormerForUniversalSegmentation.from_pretrained(self.folder, **LOADING)
        # The criterion is of training alone.
        missing = [key for key in loading["missing_keys"] if not key.startswith("criterion.")]
        require_whole(NAME, self.folder, missing)
        return model.eval().to(self.device)

    @torch.no_grad()
    def detect(self, image: Image.Image) -> list[Detection]:
        """The objects of a picture whose confidence may count, in no order. The picture goes through the network alone,
        so that nothing depends on what it is scored with."""
        pixels, size = resized_pixels(image)
        output = self.model(pixel_values=pixels[None].to(self.device))
        return list(
            self._detections(output.class_queries_logits[0], output.masks_queries_logits[0], pixels, size, image)
        )

    def _detections(
        self, class_logits: Tensor, mask_logits: Tensor, pixels: Tensor, size: tuple[int, int], image: Image.Image
    ) -> Iterator[Detection]:
        """From class logits [queries, classes + 1] and mask logits [queries, height / 4, width / 4]."""
        classes = class_logits.shape[-1] - 1
        scores, places = (
            class_logits.softmax(dim=-1)[:, :-1].flatten().topk(min(CANDIDATES, len(class_logits) * classes))
        )
        for score, place in zip(scores.tolist(), places.tolist(), strict=True):
            query, label = divmod(place, classes)
            # A mask's own score is at most 1: what is less confident already cannot count.
            if score <= CONFIDENCE or label not in self.names:
                continue
            padded, original = (pixels.shape[-2], pixels.shape[-1]), (image.height, image.width)
            logits = full_size(mask_logits[query], padded, size, original)
            mask = logits > 0
            if mask.any():
                confidence = score * float(logits.sigmoid()[mask].mean())
                yield Detection(self.names[label], confidence, _box(mask), mask.cpu().numpy())


def resized_pixels(image: Image.Image) -> tuple[Tensor, tuple[int, int]]:
    """A picture as the network takes it, [3, height, width], and its size (height, width) without the padding.

    Bilinear without a filter against aliasing, and in whole levels, as OpenCV resizes.
    """
    levels = torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1).float()
    scale = min(SHORT_SIDE / min(image.size), LONG_SIDE / max(image.size))
    size = int(image.height * scale + 0.5), int(image.width * scale + 0.5)
    resized = F.interpolate(levels[None], size, mode="bilinear", align_corners=False)[0].round()
    below, right = (-length % MULTIPLE for length in size)
    padded = F.pad(resized, (0, right, 0, below), value=PADDING)
    mean, std = (torch.tensor(values)[:, None, None] for values in (MEAN, STD))
    return (padded - mean) / std, size


def full_size(logits: Tensor, padded: tuple[int, int], size: tuple[int, int], original: tuple[int, int]) -> Tensor:
    """A mask's logits [height / 4, width / 4] in the picture's own size: first in the network's, then without padding,
    then in the picture's; each (height, width)."""
    whole = F.interpolate(logits[None, None], padded, mode="bilinear", align_corners=False)
    return F.interpolate(whole[..., : size[0], : size[1]], original, mode="bilinear", align_corners=False)[0, 0]


def _box(mask: Tensor) -> tuple[float, float, float, float]:
    rows, columns = (mask.any(dim=axis).nonzero().flatten().tolist() for axis in (1, 0))
    return columns[0], rows[0], columns[-1] + 1, rows[-1] + 1


def _class_names(folder: Path, labels: dict[str, str]) -> dict[int, str]:
    """The benchmark's class of each label that is one of COCO's.

    Raises:
        UserError: when it was not trained on all of them.
    """
    found = {int(number): ALIASES.get(label, label) for number, label in labels.items()}
    lacking = [name for name in CLASSES if name not in found.values()]
    if lacking:
        raise UserError(
            f"`--scorer` {NAME} is {folder}, whose labels in config.json lack {lacking[0]} ({len(lacking)} of COCO's "
            f"80 classes); give {WANTED}"
        )
    return {number: name for number, name in found.items() if name in CLASSES}
