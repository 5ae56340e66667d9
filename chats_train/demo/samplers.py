"""Many pictures at once, from the base or from a pair, by the ordinary headless sampler."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ..families import Denoiser, Family, Prompt
from ..sampling.sampler import SamplingSettings, initial_noise, sample_cfg, sample_pair
from .world import RESOLUTION, ScenePrompt

# Prompts' and null prompt's embeddings and noise in, latents out.
Sampler = Callable[[Prompt, Prompt, Tensor], Tensor]
PICTURES_AT_ONCE = 128


def base_sampler(family: Family, denoiser: Denoiser, settings: SamplingSettings) -> Sampler:
    """One model under classifier-free guidance."""
    return lambda prompt, null, noise: sample_cfg(family, denoiser, prompt, null, noise, settings)


def pair_sampler(family: Family, preferred: Denoiser, dispreferred: Denoiser, settings: SamplingSettings) -> Sampler:
    """A pair with CHATS."""
    return lambda prompt, null, noise: sample_pair(family, preferred, dispreferred, prompt, null, noise, settings)


@torch.no_grad()
def sample_pictures(family: Family, sampler: Sampler, prompts: Sequence[ScenePrompt], seed: int) -> Tensor:
    """A picture for each prompt, [prompts, 3, height, width] in [-1, 1] on the CPU; its noise follows from the seed and
    its place alone."""
    noise = initial_noise(family, len(prompts), RESOLUTION, RESOLUTION, seed)
    null = family.null_prompt()
    pictures = []
    for start in range(0, len(prompts), PICTURES_AT_ONCE):
        chunk = slice(start, start + PICTURES_AT_ONCE)
        prompt = family.encode_prompt([prompt.text for prompt in prompts[chunk]])
        latents = sampler(prompt, null, noise[chunk].to(family.device))
        pictures.append(family.decode_image(latents).clamp(-1, 1).cpu())
    return torch.cat(pictures)
