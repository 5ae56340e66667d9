"""Preference pairs of the small world: candidates sampled from the base, ranked by the detector, written as an ordinary folder."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from ..data.folders import METADATA, SIDES
from ..families import Denoiser, Family
from ..files import write_text
from ..sampling import SamplingSettings, to_images
from .detector import judge, score
from .pictures import base_sampler, sample_pictures
from .world import ScenePrompt


@dataclass(frozen=True)
class PairCounts:
    """What came of drawing pairs: pictures ``drawn``, the share of them that is right, and of the pairs' two sides."""

    drawn: int
    pairs: int
    right: float
    chosen_right: float
    rejected_right: float


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

    Where the detector's verdict on both is the same, the softer score alone decides which is chosen.

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
    # A right picture comes before every wrong one, whatever the score.
    ranked = torch.where(right, scores - scores.min() + scores.max() + 1, scores)
    best, worst = ranked.argmax(1), ranked.argmin(1)
    images = to_images(pictures)
    lines = []
    for side in SIDES:
        (folder / side).mkdir(parents=True)
    for number, prompt in enumerate(prompts):
        places = {"chosen": int(best[number]), "rejected": int(worst[number])}
        row: dict[str, object] = {"prompt": prompt.text, "category": prompt.category}
        for side in SIDES:
            name = f"{side}/{number:04d}.png"
            images[number * candidates + places[side]].save(folder / name)
            row |= {f"{side}_file_name": name, f"{side}_score": round(scores[number, places[side]].item(), 3)}
            row[f"{side}_right"] = bool(right[number, places[side]])
        lines.append(json.dumps(row) + "\n")
    write_text(folder / METADATA, "".join(lines))
    sides = [right.gather(1, index[:, None]).float().mean().item() for index in (best, worst)]
    return PairCounts(len(repeated), len(prompts), right.float().mean().item(), *sides)
