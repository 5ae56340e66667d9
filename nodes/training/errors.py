"""The error of Eq. 13 and 14 of any MODEL, by ComfyUI's own sampling path: no word of its family.

ComfyUI gives what a network predicts in denoised terms. That is linear in the network's output, so the distance of the
denoised from the clean latents, divided by the factor between the two, is the distance of the output from what it is
trained to be: ε, v or ε − z₀.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import comfy.model_sampling
import comfy.sampler_helpers
import comfy.samplers
import torch
from torch import Tensor

from ...chats.draws import Draw
from ...chats.objective import squared_error
from ...chats.pair import PredictionType
from ...chats.timesteps import flow_timesteps, table_timesteps
from .ordinary import ordinary

Conditioning = list[tuple[Tensor, dict[str, Any]]]

# What makes of a network's output the denoised latents, by what that output is.
DENOISING: dict[Any, PredictionType] = {
    comfy.model_sampling.EPS.calculate_denoised: "epsilon",
    comfy.model_sampling.V_PREDICTION.calculate_denoised: "v_prediction",
    comfy.model_sampling.CONST.calculate_denoised: "flow",
}


@dataclass(frozen=True)
class EncodedImage:
    """``latent`` [1, channels, …] as the VAE gives it. ``sizes`` are the entries of a conditioning by which SDXL learns
    an image's size and crop; empty for other models."""

    latent: Tensor
    sizes: dict[str, int]

    def told(self, prompt: Conditioning) -> Conditioning:
        """The prompt with the image's sizes."""
        return [(tokens, {**entry, **self.sizes}) for tokens, entry in prompt]

    def part(self, side: int) -> EncodedImage:
        """Of the image, at most so many of its latents each way; of what has no height and width all."""
        latent = self.latent[..., :side, :side] if self.latent.ndim > 3 else self.latent
        return EncodedImage(latent, self.sizes)


@dataclass(frozen=True)
class Question:
    """What a model is asked on one image: noisy latents [1, channels, …], what denoising is to give of them, σ [1],
    encoded conditions."""

    noisy: Tensor
    clean: Tensor
    sigma: Tensor
    conditions: list[dict[str, Any]]


def prediction_type(model_sampling: Any) -> PredictionType:
    """What the network predicts.

    Raises:
        ValueError: where that is none of what CHATS is defined for, or its noise levels have no known density.
    """
    kind = DENOISING.get(type(model_sampling).calculate_denoised)
    tables = (comfy.model_sampling.ModelSamplingDiscrete,)
    flows = (comfy.model_sampling.ModelSamplingDiscreteFlow, comfy.model_sampling.ModelSamplingFlux)
    if kind is None or not isinstance(model_sampling, flows if kind == "flow" else tables):
        names = ", ".join(each.__name__ for each in type(model_sampling).__mro__[1:3])
        raise ValueError(
            f"`model` predicts in a way that training does not know ({names}); connect a model that predicts epsilon, "
            "v or a flow, without a node that changes its sampling"
        )
    return kind


def sigma_of(model_sampling: Any, uniform: float) -> Tensor:
    """The noise level [1] for a number in [0, 1), drawn as the headless trainer does: a diffusion model's from its
    table, a flow's logit-normal and shifted as the MODEL is; Flux's unshifted, as diffusers trains it."""
    number = torch.tensor([uniform], dtype=torch.float64).float()
    if prediction_type(model_sampling) != "flow":
        table = model_sampling.sigmas
        return table[table_timesteps(number, len(table)).to(table.device)].detach().clone()
    is_flux = isinstance(model_sampling, comfy.model_sampling.ModelSamplingFlux)
    return flow_timesteps(number, 1.0 if is_flux else float(model_sampling.shift))


class Errors:
    """Errors of one MODEL that ComfyUI has loaded for sampling.

    Args:
        model: ComfyUI's BaseModel.
        options: a sampling run's `model_options`.
        device: where it computes.
        load: loads it again, where another model may have taken its place since.
    """

    def __init__(self, model: Any, options: dict[str, Any], device: torch.device, load: Callable[[], None]):
        self.model, self.options, self.device, self.load = model, options, device, load
        self.prediction_type = prediction_type(model.model_sampling)

    @torch.no_grad()
    def question(self, image: EncodedImage, prompt: Conditioning, drawn: Draw, seed: int = 0) -> Question:
        """What is asked on one image, whose clean latents denoising is to give."""
        asked = self.noised(image, drawn)
        latent = image.latent.to(self.device, torch.float32)
        conditions = self._conditions(image.told(prompt), self.model.process_latent_in(latent), seed)
        return replace(asked, conditions=conditions)

    @torch.no_grad()
    def noised(self, image: EncodedImage, drawn: Draw) -> Question:
        """The same without conditions, which a model that is not loaded may not be able to encode."""
        sampling = self.model.model_sampling
        latent, noise = image.latent.to(self.device, torch.float32), drawn.noise[None].to(self.device)
        clean = self.model.process_latent_in(latent)
        sigma = sigma_of(sampling, drawn.timestep).to(self.device)
        return Question(
            sampling.noise_scaling(sigma, noise, clean, False),
            # Some kinds of sampling hold latents at a scale of their own, which shows at σ = 0.
            sampling.noise_scaling(torch.zeros_like(sigma), torch.zeros_like(noise), clean, False),
            sigma,
            [],
        )

    def error(self, question: Question) -> Tensor:
        """d of Eq. 13, [1], with whatever is in force."""
        asked = (self.model, [question.conditions], question.noisy, question.sigma, self.options)
        return self.distance(comfy.samplers.calc_cond_batch(*asked)[0], question)

    def distance(self, denoised: Tensor, question: Question) -> Tensor:
        """d, [1], of what some model has denoised, in terms of what the network predicts."""
        sampling, zeros = self.model.model_sampling, torch.zeros_like(question.noisy)
        factor = sampling.calculate_denoised(question.sigma, zeros + 1, zeros)
        return squared_error(denoised / factor, question.clean / factor)

    def _conditions(self, prompt: Conditioning, clean: Tensor, seed: int) -> list[dict[str, Any]]:
        entries = {"positive": comfy.sampler_helpers.convert_cond(prompt)}
        arguments = (self.model, torch.zeros_like(clean), entries, self.device)
        return ordinary(comfy.samplers.process_conds(*arguments, latent_image=clean, seed=seed)["positive"])
