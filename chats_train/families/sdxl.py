"""Stable Diffusion XL, epsilon or v-prediction: a UNet under two CLIPs, which is told the
picture's sizes, and whose null prompt may be zeros."""

from __future__ import annotations

import torch
from torch import Tensor

from chats.pair import NullPrompt, PredictionType

from ..settings.facts import FAMILIES
from .base import Denoiser, Family
from .clip import last_hidden_but_one, open_clip_ids
from .config_keys import DIFFUSION_NOISE, UNET
from .prompts import Prompt, expand
from .schedule import Schedule
from .sd15 import diffusion_schedule


class SDXL(Family):
    facts = FAMILIES["sdxl"]
    denoiser_keys, noise_keys = UNET.but(addition_embed_type=("text_time",)), DIFFUSION_NOISE

    @staticmethod
    def part_classes() -> dict[str, type]:
        from diffusers import AutoencoderKL, UNet2DConditionModel
        from transformers import CLIPTextModel, CLIPTextModelWithProjection

        return {
            "unet": UNet2DConditionModel,
            "vae": AutoencoderKL,
            "text_encoder": CLIPTextModel,
            "text_encoder_2": CLIPTextModelWithProjection,
        }

    def _make_schedule(self, prediction_type: PredictionType | None) -> Schedule:
        return diffusion_schedule(self.source, prediction_type)

    def _null_convention(self) -> NullPrompt:
        return "zeros" if self.source.zeros_for_empty_prompt else "encoded_empty"

    def prompt_shapes(self) -> dict[str, tuple[int, ...]]:
        first, second = (self.source.config(part) for part in self.facts.text_parts)
        width = first["hidden_size"] + second["hidden_size"]
        return {"tokens": (first["max_position_embeddings"], width), "pooled": (second["projection_dim"],)}

    @torch.no_grad()
    def encode_prompt(self, prompts: list[str]) -> Prompt:
        first, second = self.text_encoders
        ids = self._token_ids(0, prompts, first.config.max_position_embeddings)
        hidden_l = first(ids, output_hidden_states=True).hidden_states[-2]
        hidden_g, pooled = last_hidden_but_one(second, open_clip_ids(ids, self.tokenizers[0].eos_token_id))
        return {"tokens": torch.cat([hidden_l, hidden_g], dim=-1), "pooled": pooled}

    def predict(
        self, denoiser: Denoiser, noisy: Tensor, timesteps: Tensor, prompt: Prompt, sizes: Tensor | None = None
    ) -> Tensor:
        if sizes is None:
            height, width = (side * self.vae_scale_factor for side in noisy.shape[-2:])
            sizes = torch.tensor([[height, width, 0, 0, height, width]])
        added = {"text_embeds": expand(prompt["pooled"], noisy), "time_ids": expand(sizes, noisy)}
        return denoiser(
            noisy,
            timesteps.to(noisy.device),
            encoder_hidden_states=expand(prompt["tokens"], noisy),
            added_cond_kwargs=added,
            return_dict=False,
        )[0]
