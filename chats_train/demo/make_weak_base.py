"""Makes the demo's weak base out of the bundled one: ``python -m chats_train.demo.make_weak_base``.

The denoiser is trained on for a few steps with half of its captions wrong. What it then draws unguided is seldom what
was asked for, and guidance brings that back, as with the bases that people have.
"""

from __future__ import annotations

import argparse
import copy
import math
import random
import time
from pathlib import Path

import torch
from torch import Tensor, nn

from chats.objective import squared_error

from ..families import Family, load_family
from .make_base import NULL_PROMPT_SHARE, encoded_scenes, follow, log, share_right, take_step
from .weak_base import BASE, DIFFERENCE, write_difference
from .world import all_prompts, balanced_prompts

SEED = 3
SCENES, STEPS, BATCH, RATE = 3000, 180, 24, 4e-4
WRONG_CAPTIONS = 0.5
# The average forgets faster than that of a long training.
AVERAGE_DECAY = 0.98
LOG_EVERY = 60


def main() -> None:
    parser = argparse.ArgumentParser("python -m chats_train.demo.make_weak_base", description=__doc__.split("\n")[0])
    parser.add_argument("--output", type=Path, default=DIFFERENCE, help="the file to write (default: the bundled one)")
    options = parser.parse_args()
    family = load_family("sd15", str(BASE))
    write_difference(weakened(family).state_dict(), options.output)


def weakened(family: Family) -> nn.Module:
    """The average of the denoiser's weights over some steps on pictures whose captions are often another's."""
    rng, generator = random.Random(SEED), torch.Generator().manual_seed(SEED)
    prompts = balanced_prompts(all_prompts(), SCENES, SEED)
    latents, captions = encoded_scenes(family, prompts, rng), [prompt.text for prompt in prompts]
    others = captions[:]
    rng.shuffle(others)
    captions = [
        other if rng.random() < WRONG_CAPTIONS else caption for caption, other in zip(captions, others, strict=True)
    ]
    tokens = _encoded(family, captions)
    null = family.null_prompt()["tokens"]
    unet = family.load_denoiser().train()
    average = copy.deepcopy(unet).requires_grad_(False).eval()
    optimizer = torch.optim.AdamW(unet.parameters(), betas=(0.9, 0.99), weight_decay=0.0)
    started = time.monotonic()
    for step in range(STEPS):
        rows = torch.randint(SCENES, (BATCH,), generator=generator)
        nulled = torch.rand(BATCH, generator=generator) < NULL_PROMPT_SHARE
        noise = torch.randn(latents[rows].shape, generator=generator)
        timesteps = family.sample_timesteps(torch.rand(BATCH, generator=generator), noise.shape[-2:])
        seen = {"tokens": torch.where(nulled[:, None, None], null, tokens[rows])}
        noisy = family.add_noise(latents[rows], noise, timesteps)
        target = family.target(latents[rows], noise, timesteps)
        loss = squared_error(family.predict(unet, noisy, timesteps, seen), target).mean()
        take_step(optimizer, loss, _rate(step))
        follow(average, unet, step, AVERAGE_DECAY)
        if (step + 1) % LOG_EVERY == 0:
            log(
                started,
                step=step + 1,
                unguided=share_right(family, average, guidance_scale=0.0),
                guided=share_right(family, average, guidance_scale=3.0),
            )
    return average


def _rate(step: int) -> float:
    """Linear warm-up over a tenth, then a cosine to zero."""
    return RATE * min(1.0, (step + 1) / (STEPS // 10)) * (1 + math.cos(math.pi * step / STEPS)) / 2


@torch.no_grad()
def _encoded(family: Family, texts: list[str]) -> Tensor:
    """Embeddings, [texts, tokens, dim]."""
    return torch.cat(
        [family.encode_prompt(texts[start : start + BATCH])["tokens"] for start in range(0, len(texts), BATCH)]
    )


if __name__ == "__main__":
    main()
