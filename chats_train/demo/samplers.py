"""Many pictures at once, from the base or from a pair, by the ordinary headless sampler."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor
from tqdm import tqdm

from ..families import Denoiser, Family, Prompt
from ..sampling.sampler import SamplingSettings, initial_noise, sample_cfg, sample_pair
from ..support.parallel import ordered_map
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


def sample_pictures(
    family: Family,
    sampler: Sampler,
    prompts: Sequence[ScenePrompt],
    seed: int,
    workers: int = 1,
    bar: tqdm | None = None,
) -> Tensor:
    """A picture for each prompt, [prompts, 3, height, width] in [-1, 1] on the CPU; its noise follows from the seed and
    its place alone.

    Args:
        workers: how many threads sample, each a part of the prompts, where cores are there for them. The models must
            not change between calls, as adapters that are switched do.
        bar: is moved on by each picture.
    """
    noise = initial_noise(family, len(prompts), RESOLUTION, RESOLUTION, seed)
    null = family.null_prompt()
    at_once = min(PICTURES_AT_ONCE, -(-len(prompts) // workers))

    @torch.no_grad()
    def drawn(start: int) -> Tensor:
        chunk = slice(start, start + at_once)
        prompt = family.encode_prompt([prompt.text for prompt in prompts[chunk]])
        latents = sampler(prompt, null, noise[chunk].to(family.device))
        return family.decode_image(latents).clamp(-1, 1).cpu()

    pictures = []
    with _cores_for(workers if family.device.type == "cpu" else 1) as at_work:
        for part in ordered_map(drawn, range(0, len(prompts), at_once), at_work):
            pictures.append(part)
            if bar is not None:
                bar.update(len(part))
    return torch.cat(pictures)


@contextmanager
def _cores_for(workers: int) -> Iterator[int]:
    """How many of the workers may work at once, each with its share of torch's threads."""
    threads = torch.get_num_threads()
    at_work = min(workers, threads)
    torch.set_num_threads(threads // at_work)
    try:
        yield at_work
    finally:
        torch.set_num_threads(threads)
