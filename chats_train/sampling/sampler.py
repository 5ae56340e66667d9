"""The headless sampler: what ComfyUI's KSampler does with `euler`, without ComfyUI, for one model (CFG) and for a pair
(CHATS).

Same noise from a seed, same noise levels for `normal` and `simple`, same order of operations: the latents agree.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor

from chats.guidance import (
    DEFAULT_ALPHA,
    DEFAULT_GUIDANCE_SCALE,
    Asked,
    Form,
    classifier_free_guidance,
    guided_prediction,
    proxy_prompt,
)

from ..families import Denoiser, Family, Prompt
from ..families.prompts import MASK
from ..families.schedule import Schedule
from ..settings.family_facts import FamilyFacts
from ..support.errors import UserError

Scheduler = Literal["normal", "simple"]
# z_t in, timesteps in, the noise level in, prediction out.
Predict = Callable[[Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class SamplingSettings:
    """How to sample; ``guidance_scale`` is the paper's s, so ComfyUI's cfg is 1 + s. ``scheduler`` and ``form`` None
    are the family's own. The form and the rest concern pairs alone: outside of ``start_percent`` to ``end_percent`` of
    the noise schedule their preferred model predicts alone."""

    steps: int = 30
    scheduler: Scheduler | None = None
    guidance_scale: float = DEFAULT_GUIDANCE_SCALE
    alpha: float = DEFAULT_ALPHA
    form: Form | None = None
    start_percent: float = 0.0
    end_percent: float = 1.0


def noise_levels(schedule: Schedule, steps: int, scheduler: Scheduler) -> Tensor:
    """The noise levels of a run, [steps + 1], falling to 0: ComfyUI's `normal` and `simple` schedulers.

    `normal` spaces the positions between the ends of the table evenly, `simple` walks the table in equal strides.
    """
    if scheduler == "normal":
        first, last = (schedule.timestep(sigma).item() for sigma in (schedule.sigmas[-1], schedule.sigmas[0]))
        sigmas = schedule.sigma(torch.linspace(first, last, steps))
    elif scheduler == "simple":
        stride = len(schedule.sigmas) / steps
        sigmas = torch.stack([schedule.sigmas[-(1 + int(step * stride))] for step in range(steps)])
    else:
        raise ValueError(f"`scheduler` is `{scheduler}`; known are `normal` and `simple`")
    return torch.cat([sigmas.float(), torch.zeros(1)])


def initial_noise(family: Family, batch: int, height: int, width: int, seed: int) -> Tensor:
    """The noise that ComfyUI draws for an empty latent: [batch, channels, height, width] of latents, float32, on the
    CPU.

    Args:
        height, width: of the picture in pixels.

    Raises:
        ValueError: when the picture does not divide into latents.
    """
    multiple = family.vae_scale_factor * family.facts.patch
    if height % multiple or width % multiple:
        raise ValueError(f"the picture is {width} × {height}; {family.name} needs multiples of {multiple}")
    shape = (batch, family.latent_channels, height // family.vae_scale_factor, width // family.vae_scale_factor)
    return torch.randn(shape, generator=torch.Generator("cpu").manual_seed(seed))


@torch.no_grad()
def sample_cfg(
    family: Family,
    denoiser: Denoiser,
    prompt: Prompt,
    null: Prompt,
    noise: Tensor,
    settings: SamplingSettings,
    sizes: Tensor | None = None,
) -> Tensor:
    """Latents from one model under classifier-free guidance (Eq. 8); at s = 0 in one pass a step.

    Args:
        family: the model's family.
        denoiser: what :meth:`Family.predict` takes.
        prompt, null: embeddings, of the batch or of 1.
        noise: :func:`initial_noise`, on the denoiser's device.
        settings: what concerns pairs is not used.
        sizes: see :meth:`Family.predict`.

    Returns:
        latents in the denoiser's scale, float32, of the shape of ``noise``.
    """

    def predict(z: Tensor, t: Tensor, _: Tensor) -> Tensor:
        cond = family.predict(denoiser, z, t, prompt, sizes).float()
        if settings.guidance_scale == 0:
            return cond
        uncond = family.predict(denoiser, z, t, null, sizes).float()
        return classifier_free_guidance(cond, uncond, settings.guidance_scale)

    return _euler(family, predict, noise, settings)


@torch.no_grad()
def sample_cfg_in_one_batch(
    family: Family, denoiser: Denoiser, prompt: Prompt, null: Prompt, noise: Tensor, settings: SamplingSettings
) -> Tensor:
    """:func:`sample_cfg` with both predictions of a step in one pass, as pipelines and ComfyUI have it where memory
    suffices: what CFG costs. The bits of a prediction can depend on what is in its batch."""
    rows = noise.shape[0]
    both = {
        name: torch.cat([each.expand(rows, *each.shape[1:]) for each in (prompt[name], null[name])]) for name in prompt
    }

    def predict(z: Tensor, t: Tensor, _: Tensor) -> Tensor:
        cond, uncond = family.predict(denoiser, torch.cat([z, z]), torch.cat([t, t]), both).float().chunk(2)
        return classifier_free_guidance(cond, uncond, settings.guidance_scale)

    return _euler(family, predict, noise, settings)


@torch.no_grad()
def sample_pair(
    family: Family,
    preferred: Denoiser,
    dispreferred: Denoiser,
    prompt: Prompt,
    null: Prompt,
    noise: Tensor,
    settings: SamplingSettings,
    sizes: Tensor | None = None,
) -> Tensor:
    """Latents from a pair: CHATS with the proxy prompt (Eq. 17) or exact (Eq. 16). Arguments and errors as for
    :func:`sample_cfg` and :func:`known_form`."""
    form = known_form(family.facts, settings.form, settings.alpha)
    asked = negative_prompts(prompt, null, settings.alpha, form)
    guides = guided_levels(family.schedule, settings.start_percent, settings.end_percent)

    def predict(z: Tensor, t: Tensor, sigma: Tensor) -> Tensor:
        cond = family.predict(preferred, z, t, prompt, sizes).float()
        if not guides(sigma):
            return cond

        def negative(which: Asked) -> Tensor:
            return family.predict(dispreferred, z, t, asked[which], sizes).float()

        return guided_prediction(cond, negative, form, settings.guidance_scale, settings.alpha)

    return _euler(family, predict, noise, settings)


def known_form(facts: FamilyFacts, form: Form | None, alpha: float) -> Form:
    """A form that a family's pairs can be sampled in; its usual one for None. At α = 0 every family has both: the
    proxy prompt is then the null prompt.

    Raises:
        UserError: when the family has no such form.
    """
    if form is None:
        return facts.forms[0] if alpha else "proxy"
    if form not in ("proxy", "exact"):
        raise ValueError(f"`form` is `{form}`; known are `proxy` and `exact`")
    if alpha and form not in facts.forms:
        raise UserError(
            f"`form` is {form}, but {facts.title}'s prompts have lengths of their own, between which no proxy prompt "
            "is defined; use exact"
        )
    return form


def negative_prompts(prompt: Prompt, null: Prompt, alpha: float, form: Form) -> dict[Asked, Prompt]:
    """The embeddings of all that a dispreferred model is asked in a form."""
    if form == "exact":
        return {"prompt": prompt, "null": null}
    if MASK in prompt:
        assert alpha == 0, "no proxy prompt between prompts of different lengths"
        return {"proxy": null}
    return {"proxy": {name: proxy_prompt(prompt[name], null[name], alpha) for name in prompt}}


def guided_levels(schedule: Schedule, start_percent: float, end_percent: float) -> Callable[[Tensor], Tensor]:
    """Whether the dispreferred model guides at noise levels, of any shape: as CHATS Apply has it in ComfyUI."""
    # The ends are open: a sampler may begin beyond the table.
    first = schedule.percent_to_sigma(start_percent) if start_percent > 0 else math.inf
    last = schedule.percent_to_sigma(end_percent) if end_percent < 1 else 0.0
    return lambda sigmas: (last <= sigmas.double()) & (sigmas.double() <= first)


def _euler(family: Family, predict: Predict, noise: Tensor, settings: SamplingSettings) -> Tensor:
    """Algorithm 2 of Karras et al. (arXiv 2206.00364) without churn, from pure noise."""
    schedule = family.schedule_for(noise.shape[-2:])
    sigmas = noise_levels(schedule, settings.steps, settings.scheduler or family.facts.scheduler)
    x = schedule.start(noise.float(), sigmas[0])
    for sigma, next_sigma in pairwise(sigmas):
        timesteps = schedule.timestep(sigma).expand(x.shape[0])
        prediction = predict(schedule.scale_input(x, sigma).to(family.dtype), timesteps, sigma)
        derivative = (x - schedule.denoised(prediction, x, sigma)) / sigma
        x = x + derivative * (next_sigma - sigma)
    return x
