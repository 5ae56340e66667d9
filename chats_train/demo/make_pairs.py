"""Preference pairs of the small world: candidates sampled from the base, ranked by the detector, written as an ordinary
folder."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from chats.files import write_text

from ..data.folders import METADATA, SIDES
from ..families import Denoiser, Family
from ..sampling.pictures import to_images
from ..sampling.sampler import SamplingSettings
from .detector import judge, score
from .samplers import base_sampler, sample_pictures
from .world import ScenePrompt


@dataclass(frozen=True)
class PairCounts:
    """What came of drawing pairs: pictures ``drawn``, the share of them that is ``right``, and the pairs made of
    them."""

    drawn: int
    right: float
    pairs: int


def draw_pairs(
    family: Family,
    denoiser: Denoiser,
    prompts: Sequence[ScenePrompt],
    folder: Path,
    *,
    candidates: int,
    settings: SamplingSettings,
    seed: int,
) -> PairCounts:
    """Samples ``candidates`` pictures for each prompt; the best and the worst by the detector's score become a pair.

    Only clear pairs are kept, a right picture against a wrong one.

    Args:
        folder: gets chosen/, rejected/ and, at the end, metadata.jsonl, which makes it a data set.
        settings: of the base's sampling, ``guidance_scale`` among them.
        seed: of the pictures' noise.
    """
    sampler = base_sampler(family, denoiser, settings)
    repeated = [prompt for prompt in prompts for _ in range(candidates)]
    pictures = sample_pictures(family, sampler, repeated, seed)
    right = torch.tensor(judge(pictures, repeated)).reshape(-1, candidates)
    scores = torch.tensor(score(pictures, repeated)).reshape(-1, candidates)
    best = scores.masked_fill(~right, -torch.inf).argmax(1)
    worst = scores.masked_fill(right, torch.inf).argmin(1)
    clear = right.any(1) & ~right.all(1)
    images = to_images(pictures)
    for side in SIDES:
        (folder / side).mkdir(parents=True)
    lines = []
    for number in clear.nonzero().flatten().tolist():
        row: dict[str, object] = {"prompt": prompts[number].text, "category": prompts[number].category}
        for side, picked in zip(SIDES, (best, worst), strict=True):
            place = int(picked[number])
            name = f"{side}/{number:04d}.png"
            images[number * candidates + place].save(folder / name)
            row |= {f"{side}_file_name": name, f"{side}_score": round(scores[number, place].item(), 3)}
        lines.append(json.dumps(row) + "\n")
    write_text(folder / METADATA, "".join(lines))
    return PairCounts(len(repeated), right.float().mean().item(), len(lines))
