"""Preference pairs of the small world, written as an ordinary folder: made by better hands than the base's, or drawn by
the base and ranked."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from chats.files import write_text

from ..data.folders import METADATA, SIDES
from ..families import Denoiser, Family
from ..sampling.pictures import to_images
from ..sampling.sampler import SamplingSettings
from .detector import judge
from .samplers import base_sampler, sample_pictures
from .taste import FORM, Taste, taste_of_cells, tastes
from .world import CELLS, COLOURS, SHAPES, Scene, ScenePrompt, Thing, draw, random_scene

# Of the makers: how many scenes they choose among by their taste, which form they aim at (1 is the taste's best), and
# how often they do not draw what was asked for.
CHOSEN_SCENES, CHOSEN_FORM = 4, 1.0
REJECTED_SCENES, REJECTED_FORM, REJECTED_WRONG = 2, 0.65, 0.35
# How much less likely a variant is for each step of its form away from what is aimed at.
FORM_SHARPNESS = 6.0


@dataclass(frozen=True)
class Quality:
    """Of some pictures: the share that shows its prompt, and the mean of the taste, apart from it."""

    right: float
    taste: float


@dataclass(frozen=True)
class PairCounts:
    """What came of making pairs: how many, and what each side is like."""

    pairs: int
    chosen: Quality
    rejected: Quality


@dataclass(frozen=True)
class DrawnCounts(PairCounts):
    """Of pairs that the base drew, also how many pictures they were taken from, and what those are like."""

    drawn: int
    source: Quality


def quality(pictures: Tensor, prompts: Sequence[ScenePrompt], taste: Taste) -> Quality:
    """Of pictures [prompts, 3, height, width]."""
    right, liked = judge(pictures, prompts), tastes(pictures, taste)
    return Quality(sum(right) / len(right), sum(liked) / len(liked))


def makers_pairs(prompts: Sequence[ScenePrompt], folder: Path, taste: Taste, seed: int) -> PairCounts:
    """A pair for each prompt, from a source that draws better than the base does, its rejected pictures too: every
    chosen picture is right and to the taste, a third of the rejected ones is wrong, and all of them are less so.

    Args:
        folder: gets chosen/, rejected/ and, at the end, metadata.jsonl, which makes it a data set.
    """
    rng = random.Random(seed)
    better, worse = [], []
    for prompt in prompts:
        better.append(_drawn(_best_scene(prompt, CHOSEN_SCENES, taste, rng), CHOSEN_FORM, taste, rng))
        scene = _best_scene(prompt, REJECTED_SCENES, taste, rng)
        if rng.random() < REJECTED_WRONG:
            scene = _damaged(scene, rng)
        worse.append(_drawn(scene, REJECTED_FORM, taste, rng))
    chosen, rejected = torch.stack(better), torch.stack(worse)
    _write(folder, prompts, chosen, rejected)
    return PairCounts(len(prompts), quality(chosen, prompts, taste), quality(rejected, prompts, taste))


def draw_pairs(
    family: Family,
    denoiser: Denoiser,
    prompts: Sequence[ScenePrompt],
    folder: Path,
    *,
    candidates: int,
    settings: SamplingSettings,
    seed: int,
    taste: Taste = "bold",
    workers: int = 1,
    bar: tqdm | None = None,
) -> DrawnCounts:
    """Samples ``candidates`` pictures for each prompt; the best and the worst by right and taste together become a
    pair. Where all are equal there is none.

    Args:
        folder: gets chosen/, rejected/ and, at the end, metadata.jsonl, which makes it a data set.
        settings: of the base's sampling, ``guidance_scale`` among them.
        seed: of the pictures' noise.
        workers, bar: as :func:`.samplers.sample_pictures` takes them.
    """
    repeated = [prompt for prompt in prompts for _ in range(candidates)]
    pictures = sample_pictures(family, base_sampler(family, denoiser, settings), repeated, seed, workers, bar)
    worth = torch.tensor(judge(pictures, repeated)).double() + torch.tensor(tastes(pictures, taste)).double()
    worth = worth.reshape(-1, candidates)
    rows = (worth.amax(1) > worth.amin(1)).nonzero().flatten()
    chosen = pictures[rows * candidates + worth.argmax(1)[rows]]
    rejected = pictures[rows * candidates + worth.argmin(1)[rows]]
    kept = [prompts[row] for row in rows.tolist()]
    _write(folder, kept, chosen, rejected)
    better, worse = quality(chosen, kept, taste), quality(rejected, kept, taste)
    return DrawnCounts(len(kept), better, worse, len(repeated), quality(pictures, repeated, taste))


def _best_scene(prompt: ScenePrompt, scenes: int, taste: Taste, rng: random.Random) -> Scene:
    """Of some random scenes of a prompt, the one whose layout is most to the taste."""
    return max((random_scene(prompt, rng) for _ in range(scenes)), key=lambda scene: taste_of_cells(taste, list(scene)))


def _drawn(scene: Scene, form: float, taste: Taste, rng: random.Random) -> Tensor:
    """The picture of a scene, its things near a form where the taste is of form."""
    weights = [math.e ** (-FORM_SHARPNESS * abs(each - form)) for each in FORM] if taste == "bold" else None
    return draw(scene, rng, weights)


def _damaged(scene: Scene, rng: random.Random) -> Scene:
    """A scene with one fault: another colour, another shape, a thing missing or one too many."""
    scene = dict(scene)
    cell, fault = rng.choice(list(scene)), rng.choice(("colour", "shape", "missing", "extra"))
    thing = scene[cell]
    if fault == "colour":
        scene[cell] = Thing(thing.shape, rng.choice([colour for colour in COLOURS if colour != thing.colour]))
    elif fault == "shape":
        scene[cell] = Thing(rng.choice([shape for shape in SHAPES if shape != thing.shape]), thing.colour)
    elif fault == "missing" and len(scene) > 1:
        del scene[cell]
    else:
        free = rng.choice([each for each in CELLS if each not in scene])
        scene[free] = Thing(rng.choice(SHAPES), rng.choice(list(COLOURS)))
    return scene


def _write(folder: Path, prompts: Sequence[ScenePrompt], chosen: Tensor, rejected: Tensor) -> None:
    """A data set: pictures first, and metadata.jsonl last."""
    images = [to_images(side) for side in (chosen, rejected)]
    for side in SIDES:
        (folder / side).mkdir(parents=True)
    lines = []
    for number, prompt in enumerate(prompts):
        row = {"prompt": prompt.text, "category": prompt.category}
        for side, pictures in zip(SIDES, images, strict=True):
            name = f"{side}/{number:04d}.png"
            pictures[number].save(folder / name)
            row[f"{side}_file_name"] = name
        lines.append(json.dumps(row) + "\n")
    write_text(folder / METADATA, "".join(lines))
