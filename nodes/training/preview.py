"""A picture of the pair under way, to look at and throw away; from the same noise each time, so that it shows what the
steps between changed.

It is drawn as a sampler draws: CHATS guidance at the defaults, ComfyUI's Euler, the connected VAE. Nothing that trains
depends on it: its noise is from a generator of its own, and whatever goes wrong in it costs the pictures alone.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import comfy.k_diffusion.sampling
import comfy.model_management
import comfy.sampler_helpers
import comfy.samplers
import torch
from torch import Tensor

from ...chats import guidance
from ...chats.words import shown_error
from ..sampling.proxy_prompt import AUTO, build_negative
from .adapters import Adapters
from .errors import Conditioning, Errors
from .steps import EncodedPair

if TYPE_CHECKING:
    from PIL.Image import Image

SCHEDULER, SAMPLING_STEPS = "simple", 10
CFG = guidance.cfg_from_guidance_scale(guidance.DEFAULT_GUIDANCE_SCALE)


class Previews:
    """Draws after each so many steps.

    Args:
        every: so many; 0 is never.
        vae: the connected one.
        seed: of the noise.
    """

    def __init__(self, every: int, vae: Any, seed: int):
        self.every, self.vae, self.seed = every, vae, seed

    def after(
        self, step: int, errors: Errors, adapters: Adapters, pair: EncodedPair, null: Conditioning
    ) -> Image | None:
        """The picture for a pair's prompt, of its chosen one's size; None where none is due or it cannot be drawn.

        Afterwards the MODEL is loaded as before, and no LoRA is in force.
        """
        if not self.every or step % self.every:
            return None
        try:
            with torch.no_grad():
                samples = sampled(errors, adapters, pair, null, self.seed)
                return _as_picture(self.vae.decode(samples))
        except comfy.model_management.InterruptProcessingException:
            raise
        except Exception as error:  # any at all: the training does not need the picture
            logging.warning(
                "CHATS: no preview could be drawn at step %d (%s), so none is drawn any more; the training goes on. "
                "Set `preview_every` to 0 to draw none",
                step,
                shown_error(error),
            )
            self.every = 0
            return None
        finally:
            adapters.active = None
            errors.load()


def sampled(errors: Errors, adapters: Adapters, pair: EncodedPair, null: Conditioning, seed: int) -> Tensor:
    """Latents [1, channels, …] as a VAE takes them, guided by the two members in the network, or of one LoRA at cfg
    1."""
    model, device = errors.model, errors.device
    shape = pair.chosen.latent.shape
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(device)
    empty = torch.zeros_like(noise)
    entries = {
        "positive": comfy.sampler_helpers.convert_cond(pair.prompt),
        "negative": comfy.sampler_helpers.convert_cond(build_negative(pair.prompt, null, guidance.DEFAULT_ALPHA, AUTO)),
    }
    conditions = comfy.samplers.process_conds(model, noise, entries, device, latent_image=empty, seed=seed)
    sigmas = comfy.samplers.calculate_sigmas(model.model_sampling, SCHEDULER, SAMPLING_STEPS).to(device)
    sampling, guided = model.model_sampling, _Guided(errors, adapters, conditions, sigmas)
    begun = sampling.noise_scaling(sigmas[0], noise, empty, True)
    drawn = comfy.k_diffusion.sampling.sample_euler(guided, begun, sigmas, disable=True)
    return model.process_latent_out(sampling.inverse_noise_scaling(sigmas[-1], drawn).float())


class _Guided:
    """The pair as ComfyUI's samplers ask a model (Eq. 16 and 17): each pass with its member's LoRA in force. With one
    LoRA alone there is one pass."""

    def __init__(self, errors: Errors, adapters: Adapters, conditions: dict[str, list], sigmas: Tensor):
        self.model, self.adapters, self.conditions = errors.model, adapters, conditions
        within = {**errors.options.get("transformer_options", {}), "sample_sigmas": sigmas}
        self.options = {**errors.options, "transformer_options": within}

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        comfy.model_management.throw_exception_if_processing_interrupted()
        predicted = []
        # One LoRA is asked the positive alone.
        for whose, name in zip(self.adapters.names, ("positive", "negative"), strict=False):
            self.adapters.active = whose
            asked = (self.model, [self.conditions[name]], x, sigma, self.options)
            predicted += comfy.samplers.calc_cond_batch(*asked)
        positive, negative = predicted[0], predicted[-1]
        return negative + CFG * (positive - negative) if len(predicted) > 1 else positive


def _as_picture(decoded: Tensor) -> Image:
    """Of pictures as ComfyUI has them, [1, height, width, 3] from 0 to 1, or of a film's frames, the first."""
    from PIL import Image

    levels = decoded.detach().cpu().float().reshape(-1, *decoded.shape[-3:])[0, ..., :3]
    return Image.fromarray((levels.clamp(0, 1) * 255).round().byte().numpy())
