"""Stable Diffusion 1.5: a UNet under one CLIP."""

from __future__ import annotations

import torch
from torch import Tensor

from chats.pair import PredictionType

from ..settings.facts import FAMILIES
from .base import Denoiser, Family
from .config_keys import DIFFUSION_NOISE, UNET
from .prompts import Prompt, expand
from .schedule import DiffusionSchedule, Schedule
from .source_error import SourceError
from .sources import Source


class SD15(Family):
    facts = FAMILIES["sd15"]
    denoiser_keys, noise_keys = UNET, DIFFUSION_NOISE

    @staticmethod
    def part_classes() -> dict[str, type]:
        from diffusers import AutoencoderKL, UNet2DConditionModel
        from transformers import CLIPTextModel

        return {"unet": UNet2DConditionModel, "vae": AutoencoderKL, "text_encoder": CLIPTextModel}

    def _make_schedule(self, prediction_type: PredictionType | None) -> Schedule:
        return diffusion_schedule(self.source, prediction_type)

    def prompt_shapes(self) -> dict[str, tuple[int, ...]]:
        clip = self.source.config("text_encoder")
        return {"tokens": (clip["max_position_embeddings"], clip["hidden_size"])}

    @torch.no_grad()
    def encode_prompt(self, prompts: list[str]) -> Prompt:
        (encoder,) = self.text_encoders
        ids = self._token_ids(0, prompts, encoder.config.max_position_embeddings)
        return {"tokens": encoder(ids).last_hidden_state}

    def predict(
        self, denoiser: Denoiser, noisy: Tensor, timesteps: Tensor, prompt: Prompt, sizes: Tensor | None = None
    ) -> Tensor:
        return denoiser(
            noisy, timesteps.to(noisy.device), encoder_hidden_states=expand(prompt["tokens"], noisy), return_dict=False
        )[0]


def diffusion_schedule(source: Source, prediction_type: PredictionType | None) -> DiffusionSchedule:
    """The schedule of a UNet base: what it states of itself, or what the config says instead.

    Raises:
        SourceError: for a prediction type that a UNet does not have.
    """
    stated = source.noise
    kind = prediction_type or stated.get("prediction_type", "epsilon")
    if kind not in ("epsilon", "v_prediction"):
        raise SourceError(f"`prediction_type` is `{kind}`; a UNet predicts `epsilon` or `v_prediction`")
    return DiffusionSchedule(kind, bool(stated.get("rescale_betas_zero_snr", False)))
