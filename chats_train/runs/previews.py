"""A preview: what several samplers draw for some prompts, side by side; of a run the base and what is trained."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from PIL import Image
from torch import Tensor

from ..families import Family, Prompt
from ..sampling.pictures import enlarged, picture_grid, to_images
from ..sampling.sampler import Form, SamplingSettings, initial_noise, known_form, sample_cfg, sample_pair
from ..settings.config import RunConfig
from .members import DISPREFERRED, PREFERRED, Members

# Smaller pictures are enlarged to about this side in pixels, or their titles would not fit.
PREVIEW_SIDE = 192
# Prompt, null prompt and noise in, latents out.
Draw = Callable[[Prompt, Prompt, Tensor], Tensor]


def preview(
    config: RunConfig,
    family: Family,
    members: Members,
    prompts: Sequence[tuple[Prompt, Prompt]],
    device: torch.device,
    form: Form | None = None,
) -> Image.Image:
    """A grid with a row for each prompt: the base with CFG and the pair with CHATS, from the same noise.

    Args:
        prompts: embeddings of each prompt and of the null prompt, batches of 1.
        form: None for the family's usual one.
    """
    form = known_form(family.facts, form, config.alpha)
    settings = SamplingSettings(
        steps=config.sample_steps, guidance_scale=config.guidance_scale, alpha=config.alpha, form=form
    )

    def base(prompt: Prompt, null: Prompt, noise: Tensor) -> Tensor:
        return sample_cfg(family, members.reference(), prompt, null, noise, settings)

    def trained(prompt: Prompt, null: Prompt, noise: Tensor) -> Tensor:
        if len(members.names) == 1:
            return sample_cfg(family, members.denoiser(PREFERRED), prompt, null, noise, settings)
        pair = members.denoiser(PREFERRED), members.denoiser(DISPREFERRED)
        return sample_pair(family, *pair, prompt, null, noise, settings)

    title = f"pair, CHATS ({form})" if len(members.names) == 2 else "trained, CFG"
    return side_by_side(config, family, prompts, device, {"base, CFG": base, title: trained})


def side_by_side(
    config: RunConfig,
    family: Family,
    prompts: Sequence[tuple[Prompt, Prompt]],
    device: torch.device,
    columns: Mapping[str, Draw],
) -> Image.Image:
    """A grid with a row for each prompt and a column for each way to draw, by its title; a row's noise is the same."""
    rows = []
    for index, (prompt, null) in enumerate(prompts):
        noise = initial_noise(family, 1, config.resolution, config.resolution, config.seed + index).to(device)
        drawn = [draw(prompt, null, noise) for draw in columns.values()]
        rows.append([enlarged(to_images(family.decode_image(latents))[0], PREVIEW_SIDE) for latents in drawn])
    return picture_grid(rows, titles=list(columns))
