"""The layout of Flux.1-dev: a transformer on rectified flow over packed latents, under CLIP's pooled text and a T5.
LoRA only."""

from __future__ import annotations

import math
from typing import Any

import torch
from einops import rearrange
from torch import Tensor

from chats.pair import PredictionType

from ..settings.facts import FAMILIES
from .base import Denoiser, Family
from .config_keys import FLOW_NOISE, ConfigKeys
from .prompts import Prompt, expand
from .schedule import FlowSchedule, Schedule
from .sd3 import require_flow
from .source_error import SourceError
from .sources import Shapes

# ComfyUI's shift for Flux is mu = 1.15 at every size, e^mu in the terms of `FlowSchedule`.
SAMPLING_MU = 1.15
SAMPLING_TABLE_SIZE = 10_000
# What the guidance-distilled model is told, in training as in sampling: the default of diffusers' trainer and of
# ComfyUI.
EMBEDDED_GUIDANCE = 3.5
HEAD_DIM = 128


class Flux(Family):
    facts = FAMILIES["flux"]
    denoiser_keys = ConfigKeys(
        honoured={
            "patch_size": (1,),
            "in_channels": (64,),
            "out_channels": (None, 64),
            "attention_head_dim": (HEAD_DIM,),
            "axes_dims_rope": ((16, 56, 56),),
        },
        # Whether it takes a guidance scale: `_make_schedule` tells dev and schnell apart.
        built=(
            "num_layers num_single_layers num_attention_heads joint_attention_dim pooled_projection_dim guidance_embeds"
        ),
    )
    noise_keys = FLOW_NOISE

    @staticmethod
    def part_classes() -> dict[str, type]:
        from diffusers import AutoencoderKL, FluxTransformer2DModel
        from transformers import CLIPTextModel, T5EncoderModel

        return {
            "transformer": FluxTransformer2DModel,
            "vae": AutoencoderKL,
            "text_encoder": CLIPTextModel,
            "text_encoder_2": T5EncoderModel,
        }

    def _make_schedule(self, prediction_type: PredictionType | None) -> Schedule:
        require_flow(prediction_type)
        if not self.source.config("transformer").get("guidance_embeds"):
            raise SourceError(
                "`pretrained_model` is a Flux without guidance embedding (schnell); `family` flux trains Flux.1-dev"
            )
        # diffusers' trainer draws Flux's timesteps unshifted.
        return FlowSchedule(shift=math.exp(SAMPLING_MU), training_shift=1.0, table_size=SAMPLING_TABLE_SIZE)

    @staticmethod
    def denoiser_config(native: Shapes) -> dict[str, Any]:
        hidden, packed_channels = native["img_in.weight"]
        return {
            "_class_name": "FluxTransformer2DModel",
            "in_channels": packed_channels,
            "num_layers": len({key.split(".")[1] for key in native if key.startswith("double_blocks.")}),
            "num_single_layers": len({key.split(".")[1] for key in native if key.startswith("single_blocks.")}),
            "attention_head_dim": HEAD_DIM,
            "num_attention_heads": hidden // HEAD_DIM,
            "joint_attention_dim": native["txt_in.weight"][1],
            "pooled_projection_dim": native["vector_in.in_layer.weight"][1],
            "guidance_embeds": "guidance_in.in_layer.weight" in native,
        }

    def prompt_shapes(self) -> dict[str, tuple[int, ...]]:
        clip, t5 = (self.source.config(part) for part in self.facts.text_parts)
        return {"tokens": (self.facts.t5_tokens, t5["d_model"]), "pooled": (clip["hidden_size"],)}

    @torch.no_grad()
    def encode_prompt(self, prompts: list[str]) -> Prompt:
        clip, t5 = self.text_encoders
        clip_ids = self._token_ids(0, prompts, clip.config.max_position_embeddings)
        return {
            "tokens": t5(self._token_ids(1, prompts, self.facts.t5_tokens)).last_hidden_state,
            "pooled": clip(clip_ids).pooler_output,
        }

    def predict(
        self, denoiser: Denoiser, noisy: Tensor, timesteps: Tensor, prompt: Prompt, sizes: Tensor | None = None
    ) -> Tensor:
        patch = self.facts.patch
        rows, columns = (side // patch for side in noisy.shape[-2:])
        tokens = expand(prompt["tokens"], noisy)
        packed = denoiser(
            hidden_states=rearrange(noisy, "b c (h p) (w q) -> b (h w) (c p q)", p=patch, q=patch),
            # The module multiplies both by 1000 itself.
            timestep=timesteps.to(noisy.device, torch.float32),
            guidance=torch.full((noisy.shape[0],), EMBEDDED_GUIDANCE, device=noisy.device),
            encoder_hidden_states=tokens,
            pooled_projections=expand(prompt["pooled"], noisy),
            img_ids=image_ids(rows, columns).to(noisy.device),
            txt_ids=torch.zeros(tokens.shape[1], 3, device=noisy.device),
            return_dict=False,
        )[0]
        return rearrange(packed, "b (h w) (c p q) -> b c (h p) (w q)", h=rows, w=columns, p=patch, q=patch)


def image_ids(rows: int, columns: int) -> Tensor:
    """Positions of the image tokens, [rows · columns, 3]: nothing, row, column."""
    ids = torch.zeros(rows, columns, 3)
    ids[..., 1] = torch.arange(rows)[:, None]
    ids[..., 2] = torch.arange(columns)[None, :]
    return ids.reshape(-1, 3)
