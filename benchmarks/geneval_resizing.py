"""How far GenEval's resizing here is from mmdet's, which the published scorer uses, and from transformers' own.

    python benchmarks/geneval_resizing.py

needs OpenCV, which mmdet resizes with (`pip install opencv-python-headless`). No weights: pictures are noise, and masks
are the positive part of random smooth fields.
"""

from __future__ import annotations

import platform
import sys
from datetime import date
from pathlib import Path

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[1]))

from chats_train.evaluation.benchmarks.segmenter import MEAN, STD, full_size, resized_pixels

SIZES = (512, 1024)
NETWORK, STRIDE, TRANSFORMERS = 800, 4, 384
MASKS = 40


def main() -> None:
    print(f"{date.today()}, {platform.machine()}, torch {torch.__version__}, OpenCV {cv2.__version__}\n")
    print("| picture | resized by | mean difference to OpenCV, levels of 255 | largest |")
    print("| --- | --- | ---: | ---: |")
    for side in SIZES:
        levels = np.random.default_rng(side).integers(0, 256, (side, side, 3), dtype=np.uint8)
        expected = cv2.resize(levels, (NETWORK, NETWORK), interpolation=cv2.INTER_LINEAR).astype(float)
        image = Image.fromarray(levels)
        ours = (resized_pixels(image)[0].permute(1, 2, 0) * torch.tensor(STD) + torch.tensor(MEAN)).numpy()
        pillow = np.asarray(image.resize((NETWORK, NETWORK), Image.Resampling.BILINEAR)).astype(float)
        for name, found in (("here", ours), ("Pillow, as transformers", pillow)):
            far = np.abs(found - expected)
            print(f"| {side} × {side} | {name} | {far.mean():.3f} | {far.max():.1f} |")
    print(
        "\n| picture | masks through | smallest overlap (IoU) | mean | an edge of the box moves by, pixels | at most |"
    )
    print("| --- | --- | ---: | ---: | ---: | ---: |")
    for side in SIZES:
        overlaps, moves = zip(*(compare(number, side) for number in range(MASKS)), strict=True)
        print(
            f"| {side} × {side} | {TRANSFORMERS} × {TRANSFORMERS}, as transformers | {min(overlaps):.3f} | "
            f"{np.mean(overlaps):.3f} | {np.mean(moves):.2f} | {max(moves):.0f} |"
        )


def compare(seed: int, side: int) -> tuple[float, int]:
    """Of one mask: the overlap of transformers' way with the one here, and how far an edge of its box moves."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randn(1, 1, 6, 6, generator=generator) - 1
    logits = F.interpolate(coarse, (NETWORK // STRIDE,) * 2, mode="bicubic", align_corners=False)[0, 0]
    here = full_size(logits, (NETWORK, NETWORK), (NETWORK, NETWORK), (side, side)) > 0
    small = F.interpolate(logits[None, None], (TRANSFORMERS,) * 2, mode="bilinear", align_corners=False) > 0
    theirs = F.interpolate(small.float(), (side, side), mode="nearest")[0, 0] > 0
    if not here.any() or not theirs.any():
        return 1.0, 0
    edges = [
        [f(each.any(dim=axis).nonzero()) for axis in (0, 1) for f in (torch.min, torch.max)] for each in (here, theirs)
    ]
    moved = max(abs(int(a) - int(b)) for a, b in zip(*edges, strict=True))
    return float((here & theirs).sum() / (here | theirs).sum()), moved


if __name__ == "__main__":
    main()
