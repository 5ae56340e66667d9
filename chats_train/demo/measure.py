"""Counting: how often pictures of two samplers show what their prompts ask for, and both side by side."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from ..families import Family
from ..sampling.pictures import enlarged, to_images
from .detector import judge
from .samplers import Sampler, sample_pictures
from .world import CATEGORIES, ScenePrompt

PICTURE_SIDE, FRAME, GAP, TEXT_SIZE = 192, 4, 16, 17
RIGHT_COLOUR, WRONG_COLOUR = "#2e9e44", "#c8c8c8"


@dataclass(frozen=True)
class Count:
    """Pictures of one sampler at one guidance scale (the paper's s), [prompts, 3, height, width], and whether each is
    right, [prompts]."""

    guidance_scale: float
    pictures: Tensor
    right: Tensor

    @property
    def share(self) -> float:
        return self.right.double().mean().item()


def count(family: Family, sampler: Sampler, guidance_scale: float, prompts: Sequence[ScenePrompt], seed: int) -> Count:
    """Samples every prompt and counts."""
    pictures = sample_pictures(family, sampler, prompts, seed)
    return Count(guidance_scale, pictures, torch.tensor(judge(pictures, prompts)))


def standard_error(values: Tensor) -> float:
    """Of the mean of values [n]."""
    return values.double().std().item() / math.sqrt(len(values))


def difference(base: Count, pair: Count) -> tuple[float, float]:
    """By how much the pair is right more often than the base, and its standard error; prompt by prompt, as both drew
    the same."""
    differences = pair.right.double() - base.right.double()
    return differences.mean().item(), standard_error(differences)


def table(base: Sequence[Count], pair: Sequence[Count], title: str) -> list[str]:
    """A line for each guidance scale: both shares and their difference, in percent with standard errors."""
    lines = [f"  {'s':>4}   {'base, CFG':>14}   {title:>24}   {'difference':>14}"]
    for ours, theirs in zip(base, pair, strict=True):
        shares = [f"{100 * each.share:5.1f} ± {100 * standard_error(each.right):.1f} %" for each in (ours, theirs)]
        gain, error = difference(ours, theirs)
        lines.append(
            f"  {ours.guidance_scale:4g}   {shares[0]:>14}   {shares[1]:>24}   {100 * gain:+6.1f} ± {100 * error:.1f}"
        )
    return lines


def category_table(base: Count, pair: Count, prompts: Sequence[ScenePrompt]) -> list[str]:
    """A line for each category, in percent."""
    lines = []
    for category in CATEGORIES:
        rows = torch.tensor([prompt.category == category for prompt in prompts])
        if rows.any():
            shares = [100 * each.right[rows].double().mean().item() for each in (base, pair)]
            lines.append(f"  {category:<18} {shares[0]:5.1f} → {shares[1]:5.1f} %")
    return lines


def best(counts: Sequence[Count]) -> Count:
    """The one at the scale that is right most often."""
    return max(counts, key=lambda each: each.share)


def verdict(base: Count, pair: Count) -> str:
    """Both at their best scales, in one sentence that promises nothing."""
    gain, error = difference(base, pair)
    compared = (
        f"each at its best scale: base {100 * base.share:.1f} % (s = {base.guidance_scale:g}), "
        f"pair {100 * pair.share:.1f} % (s = {pair.guidance_scale:g}), {100 * gain:+.1f} ± {100 * error:.1f} points"
    )
    if gain > 2 * error:
        return f"{compared}: CHATS draws more prompts right"
    if gain < -2 * error:
        return f"{compared}: CHATS draws FEWER prompts right"
    return f"{compared}: no clear difference"


def side_by_side(
    base: Count, pair: Count, prompts: Sequence[ScenePrompt], titles: tuple[str, str], columns: int = 3
) -> Image.Image:
    """Both pictures of each prompt next to each other, the prompt above them, in a green frame where they show it."""
    font = ImageFont.load_default(size=TEXT_SIZE)
    tile = PICTURE_SIDE + 2 * FRAME
    width, height = 2 * tile + 2 * GAP, tile + TEXT_SIZE + 2 * GAP
    top = 2 * (TEXT_SIZE + GAP)
    rows = -(-len(prompts) // columns)
    sheet = Image.new("RGB", (columns * width + GAP, top + rows * height), "white")
    pen = ImageDraw.Draw(sheet)
    legend = "green frame: the picture shows what the prompt asks for; grey frame: it does not"
    pen.text((GAP, GAP // 2), legend, fill="black", font=font)
    images = [to_images(each.pictures[: len(prompts)]) for each in (base, pair)]
    for column in range(columns):
        for side, title in enumerate(titles):
            pen.text((GAP + column * width + side * tile, GAP + TEXT_SIZE), title, fill="black", font=font)
    for index, prompt in enumerate(prompts):
        left, y = GAP + index % columns * width, top + index // columns * height
        pen.text((left, y), prompt.text, fill="black", font=font)
        for side, each in enumerate((base, pair)):
            x = left + side * tile
            frame = RIGHT_COLOUR if each.right[index] else WRONG_COLOUR
            box = (x, y + TEXT_SIZE + GAP // 2)
            pen.rectangle((*box, box[0] + tile - 1, box[1] + tile - 1), fill=frame)
            sheet.paste(enlarged(images[side][index], PICTURE_SIDE), (box[0] + FRAME, box[1] + FRAME))
    return sheet
