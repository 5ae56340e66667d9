"""A preview: what the base draws and what is trained draws, side by side."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from PIL import Image

from ..families import Family, Prompt
from ..sampling.pictures import enlarged, picture_grid, to_images
from ..sampling.sampler import Form, SamplingSettings, initial_noise, sample_cfg, sample_pair
from ..settings.config import RunConfig
from .members import DISPREFERRED, PREFERRED, Members

# Smaller pictures are enlarged to about this side in pixels, or their titles would not fit.
PREVIEW_SIDE = 192


def preview(
    config: RunConfig,
    family: Family,
    members: Members,
    prompts: Sequence[tuple[Prompt, Prompt]],
    device: torch.device,
    form: Form = "proxy",
) -> Image.Image:
    """A grid with a row for each prompt: the base with CFG and the pair with CHATS, from the same noise.

    Args:
        prompts: embeddings of each prompt and of the null prompt, batches of 1.
    """
    settings = SamplingSettings(
        steps=config.sample_steps, guidance_scale=config.guidance_scale, alpha=config.alpha, form=form
    )
    both = len(members.names) == 2
    rows = []
    for index, (prompt, null) in enumerate(prompts):
        noise = initial_noise(family, 1, config.resolution, config.resolution, config.seed + index).to(device)
        base = sample_cfg(family, members.reference(), prompt, null, noise, settings)
        if both:
            pair = members.denoiser(PREFERRED), members.denoiser(DISPREFERRED)
            trained = sample_pair(family, *pair, prompt, null, noise, settings)
        else:
            trained = sample_cfg(family, members.denoiser(PREFERRED), prompt, null, noise, settings)
        rows.append([enlarged(to_images(family.decode_image(latents))[0], PREVIEW_SIDE) for latents in (base, trained)])
    return picture_grid(rows, titles=["base, CFG", f"pair, CHATS ({form})" if both else "trained, CFG"])
