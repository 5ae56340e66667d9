"""Makes the demo's base from nothing: ``python -m chats_train.demo.make_base --output FOLDER``.

Two stages, all seeded. The VAE learns scenes of all densities. Then the denoiser and the text encoder learn pictures
and their prompts, a tenth of them the null prompt. Nothing shows them a proxy prompt, as nothing showed one to the
bases that people have.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import random
import shutil
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from chats.files import write_text
from chats.objective import squared_error

from ..families import Family, load_family
from ..families.sources import read_json
from ..sampling.sampler import SamplingSettings
from ..support.errors import UserError
from .base_parts import make_scheduler, make_text_encoder, make_unet, make_vae, save_tokenizer
from .detector import THINGS, judge
from .samplers import base_sampler, sample_pictures
from .world import CELLS, all_prompts, balanced_prompts, draw, random_scene

SEED = 0
LOG_EVERY = 500
# VAE.
VAE_STEPS, VAE_BATCH, VAE_RATE = 4000, 8, 2e-3
KL_WEIGHT = 1e-4
# Of cells that hold a thing: dense scenes teach more a step, sparse ones are what prompts ask for.
DENSITIES = (0.2, 0.7, 0.9)
# Denoiser.
SCENES = 30_000
STEPS, BATCH, RATE = 8000, 32, 1e-3
NULL_PROMPT_SHARE = 0.1
AVERAGE_DECAY = 0.999
SCORED_PROMPTS = 120


def main() -> None:
    parser = argparse.ArgumentParser("python -m chats_train.demo.make_base", description=__doc__.split("\n")[0])
    parser.add_argument("--output", type=Path, required=True, help="the folder to write; it must not be there yet")
    parser.add_argument("--vae", type=Path, help="a base whose VAE is taken over; without it one is trained")
    options = parser.parse_args()
    folder = options.output
    if folder.exists():
        raise UserError(f"`--output` is {folder}, which is there already; remove it or choose another name")
    torch.manual_seed(SEED)
    vae = load_family("sd15", str(options.vae)).vae if options.vae else train_vae(random.Random(SEED))
    tokenizer = save_tokenizer(folder / "tokenizer")
    torch.manual_seed(SEED)  # the second stage does not depend on how the first one went
    save(folder, vae, make_text_encoder(tokenizer), make_unet())
    family = load_family("sd15", str(folder))
    unet = train_denoiser(family, random.Random(SEED + 1))
    save(folder, family.vae, family.text_encoders[0], unet)


def train_vae(rng: random.Random) -> nn.Module:
    """A VAE with its latents' deviation as ``scaling_factor``."""
    vae = make_vae()
    optimizer = torch.optim.AdamW(vae.parameters(), betas=(0.9, 0.99), weight_decay=0.0)
    started = time.monotonic()
    for step in range(VAE_STEPS):
        pictures = torch.stack([_dense_picture(rng) for _ in range(VAE_BATCH)])
        posterior = vae.encode(pictures).latent_dist
        error = (vae.decode(posterior.sample()).sample - pictures).square().mean()
        divergence = posterior.kl().mean() / posterior.mean[0].numel()
        take_step(optimizer, error + KL_WEIGHT * divergence, _rate(VAE_RATE, step, VAE_STEPS))
        if step % LOG_EVERY == 0 or step == VAE_STEPS - 1:
            log(started, stage="vae", step=step, error=error.item(), divergence=divergence.item(), **_vae_scores(vae))
    vae.register_to_config(scaling_factor=1 / _vae_scores(vae)["latent_deviation"])
    return vae.eval()


def _dense_picture(rng: random.Random) -> Tensor:
    density = rng.choice(DENSITIES)
    return draw({cell: rng.choice(THINGS) for cell in CELLS if rng.random() < density}, rng)


@torch.no_grad()
def _vae_scores(vae: Any) -> dict[str, float]:
    prompts = balanced_prompts(all_prompts(), SCORED_PROMPTS, SEED)
    rng = random.Random(SEED)
    pictures = torch.stack([draw(random_scene(prompt, rng), rng) for prompt in prompts])
    latents = vae.encode(pictures).latent_dist.mode()
    restored = vae.decode(latents).sample
    right = sum(judge(restored, prompts)) / len(prompts)
    return {
        "latent_deviation": latents.std().item(),
        "restored_error": (restored - pictures).square().mean().item(),
        "right": right,
    }


def train_denoiser(family: Family, rng: random.Random) -> nn.Module:
    """The average of a denoiser's weights over its training; the family's text encoder is trained in place."""
    unet, encoder = family.load_denoiser().train(), family.text_encoders[0].requires_grad_(True).train()
    average = copy.deepcopy(unet).requires_grad_(False).eval()
    prompts = balanced_prompts(all_prompts(), SCENES, SEED)
    latents = encoded_scenes(family, prompts, rng)
    ids = torch.cat([family._token_ids(0, [prompt.text for prompt in prompts], encoder.config.max_position_embeddings)])
    null_ids = family._token_ids(0, [""], encoder.config.max_position_embeddings)
    optimizer = torch.optim.AdamW([*unet.parameters(), *encoder.parameters()], betas=(0.9, 0.99), weight_decay=0.0)
    generator = torch.Generator().manual_seed(SEED)
    started, losses = time.monotonic(), []
    for step in range(STEPS):
        rows = torch.randint(len(prompts), (BATCH,), generator=generator)
        nulled = torch.rand(BATCH, generator=generator) < NULL_PROMPT_SHARE
        tokens = encoder(torch.where(nulled[:, None], null_ids, ids[rows])).last_hidden_state
        noise = torch.randn(latents[rows].shape, generator=generator)
        timesteps = family.sample_timesteps(torch.rand(BATCH, generator=generator), noise.shape[-2:])
        noisy, target = (
            family.add_noise(latents[rows], noise, timesteps),
            family.target(latents[rows], noise, timesteps),
        )
        loss = squared_error(family.predict(unet, noisy, timesteps, {"tokens": tokens}), target).mean()
        take_step(optimizer, loss, _rate(RATE, step, STEPS))
        follow(average, unet, step)
        losses.append(loss.item())
        if (step + 1) % LOG_EVERY == 0 or step == STEPS - 1:
            recent = sum(losses[-LOG_EVERY:]) / len(losses[-LOG_EVERY:])
            log(started, stage="denoiser", step=step + 1, loss=recent, right=share_right(family, average))
    return average


def encoded_scenes(family: Family, prompts: list, rng: random.Random) -> Tensor:
    """A picture of each prompt as latents, [prompts, channels, height, width]."""
    chunks = [prompts[start : start + BATCH] for start in range(0, len(prompts), BATCH)]
    return torch.cat(
        [
            family.encode_image(torch.stack([draw(random_scene(prompt, rng), rng) for prompt in chunk]))
            for chunk in chunks
        ]
    )


def share_right(family: Family, denoiser: nn.Module, guidance_scale: float = 2.0, steps: int = 12) -> float:
    """The share of prompts that a denoiser draws right under classifier-free guidance."""
    prompts = balanced_prompts(all_prompts(), SCORED_PROMPTS, SEED)
    sampler = base_sampler(family, denoiser, SamplingSettings(steps=steps, guidance_scale=guidance_scale))
    return sum(judge(sample_pictures(family, sampler, prompts, SEED), prompts)) / len(prompts)


def take_step(optimizer: torch.optim.Optimizer, loss: Tensor, rate: float) -> None:
    optimizer.zero_grad()
    loss.backward()
    for group in optimizer.param_groups:
        group["lr"] = rate
        nn.utils.clip_grad_norm_(group["params"], 1.0)
    optimizer.step()


def _rate(peak: float, step: int, steps: int) -> float:
    """Linear warm-up over 50 steps, then a cosine to zero."""
    return peak * min(1.0, (step + 1) / 50) * (1 + math.cos(math.pi * step / steps)) / 2


@torch.no_grad()
def follow(average: nn.Module, module: nn.Module, step: int, most_decay: float = AVERAGE_DECAY) -> None:
    decay = min(most_decay, (1 + step) / (10 + step))
    for mine, theirs in zip(average.parameters(), module.parameters(), strict=True):
        mine.lerp_(theirs, 1 - decay)


def log(started: float, **values: float | str) -> None:
    print(json.dumps({**values, "seconds": round(time.monotonic() - started)}), flush=True)


def save(folder: Path, vae: nn.Module, encoder: nn.Module, unet: nn.Module, dtype: torch.dtype = torch.float16) -> None:
    """Writes the whole pipeline as diffusers does; the denoiser is trained with the VAE as it is stored."""
    from diffusers import StableDiffusionPipeline
    from transformers import CLIPTokenizer

    tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer", local_files_only=True)
    pipeline = StableDiffusionPipeline(
        vae.to(dtype),
        encoder.to(dtype),
        tokenizer,
        unet.to(dtype),
        make_scheduler(),
        None,
        None,
        requires_safety_checker=False,
    )
    pipeline.save_pretrained(folder)
    for part in ("unet", "vae"):
        # diffusers notes the folder that a part was loaded from.
        config = read_json(folder / part / "config.json")
        write_text(
            folder / part / "config.json",
            json.dumps({k: v for k, v in config.items() if k != "_name_or_path"}, indent=2) + "\n",
        )
    # CLIP's own two files, without what this version of transformers adds.
    shutil.rmtree(folder / "tokenizer")
    save_tokenizer(folder / "tokenizer")


if __name__ == "__main__":
    main()
