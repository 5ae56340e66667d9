"""The teacher of a distillation: what a sampler gets of a pair's MODEL, asked at one noise level, whatever loader and
nodes the pair comes from."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import comfy.model_patcher
import comfy.samplers
import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ...chats.guidance import Form
from ..advice import PROXY
from ..sampling.proxy_prompt import AUTO, build_negative
from .errors import Conditioning, EncodedImage, Question


class Asked(comfy.samplers.Sampler):
    """What the guider calls in a sampler's place: one prediction.

    Attributes:
        guided: the denoised latents, with the pair's guidance.
        preferred: those of the preferred member alone.
    """

    guided: Tensor
    preferred: Tensor

    def __init__(self, question: Question):
        self.question = question

    def sample(
        self, model_wrap: Any, sigmas: Tensor, extra_args: dict, callback: Any, noise: Tensor, *args: Any, **kwargs: Any
    ) -> Tensor:
        options = comfy.model_patcher.create_model_options_clone(extra_args["model_options"])
        options = comfy.model_patcher.set_model_options_post_cfg_function(options, self._note)
        noisy, sigma = self.question.noisy.to(noise.device), self.question.sigma.to(noise.device)
        self.guided = model_wrap(noisy, sigma, model_options=options, seed=extra_args["seed"])
        return torch.zeros_like(noise)

    def _note(self, arguments: dict[str, Any]) -> Tensor:
        self.preferred = arguments["cond_denoised"]
        return arguments["denoised"]


@dataclass(frozen=True)
class Teacher:
    """
    Attributes:
        model: the pair's.
        null: the null prompt.
        cfg, alpha, form: how the pair is sampled.
    """

    model: ModelPatcher
    null: Conditioning
    cfg: float
    alpha: float
    form: str

    def ask(self, image: EncodedImage, prompt: Conditioning, question: Question, seed: int = 0) -> Asked:
        """What the pair makes of the noisy latents of a question."""
        positive, null = image.told(prompt), image.told(self.null)
        guider = comfy.samplers.CFGGuider(self.model)
        guider.set_conds(positive, build_negative(positive, null, self.alpha, self.form))
        guider.set_cfg(self.cfg)
        asked, levels = Asked(question), torch.cat([question.sigma.cpu(), torch.zeros(1)])
        with torch.no_grad():
            guider.sample(torch.zeros_like(image.latent), image.latent, asked, levels, disable_pbar=True, seed=seed)
        return asked


def form_for_all(prompts: Iterable[Conditioning], null: Conditioning, alpha: float, form: str) -> Form:
    """The one form that a student learns: where it is left open, proxy if every prompt can be mixed, else exact.

    Raises:
        ValueError: where a prompt cannot be sampled so.
    """
    used = {build_negative(prompt, null, alpha, form)[0][1][PROXY].form for prompt in prompts}
    if form == AUTO:
        return "exact" if "exact" in used else "proxy"
    return "exact" if form == "exact" else "proxy"
