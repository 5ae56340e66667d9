"""The layout of Flux.1-dev: a transformer on rectified flow over packed latents, under CLIP's pooled text and a T5.
LoRA only."""

from __future__ import annotations

import math
from typing import Any

import torch
from einops import rearrange
from torch import Tensor

from chats.pair import PredictionType

from .base import Denoiser, Family, Prompt, expand
from .schedule import FlowSchedule, Schedule
from .sd3 import require_flow
from .single_file import CheckpointLayout
from .sources import Shapes, SourceError

# ComfyUI pads to at least 256 and lets longer prompts be longer; diffusers fixes 512. Trained as it will be sampled.
T5_TOKENS = 256
# ComfyUI's shift for Flux is mu = 1.15 at every size, e^mu in the terms of `FlowSchedule`.
SAMPLING_MU = 1.15
SAMPLING_TABLE_SIZE = 10_000
# What the guidance-distilled model is told, in training as in sampling: the default of diffusers' trainer and of
# ComfyUI.
EMBEDDED_GUIDANCE = 3.5
HEAD_DIM = 128
PATCH = 2


def flux_config(native: Shapes) -> dict[str, Any]:
    """The transformer's configuration, as the shapes of its native weights tell it."""
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


class Flux(Family):
    name = "flux"
    # Two copies of 12 billion weights fit nowhere that people have.
    training_methods = ("lora",)
    latent_multiple = 2
    denoiser_part = "transformer"
    text_parts = ("text_encoder", "text_encoder_2")
    tokenizer_parts = ("tokenizer", "tokenizer_2")
    lora_targets = ("to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out")
    checkpoint = CheckpointLayout("flux", {"transformer": "model.diffusion_model."}, flux_config)

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

    @torch.no_grad()
    def encode_prompt(self, prompts: list[str]) -> Prompt:
        clip, t5 = self.text_encoders
        clip_ids = self._token_ids(0, prompts, clip.config.max_position_embeddings)
        return {
            "tokens": t5(self._token_ids(1, prompts, T5_TOKENS)).last_hidden_state,
            "pooled": clip(clip_ids).pooler_output,
        }

    def predict(
        self, denoiser: Denoiser, noisy: Tensor, timesteps: Tensor, prompt: Prompt, sizes: Tensor | None = None
    ) -> Tensor:
        rows, columns = (side // PATCH for side in noisy.shape[-2:])
        tokens = expand(prompt["tokens"], noisy)
        packed = denoiser(
            hidden_states=rearrange(noisy, "b c (h p) (w q) -> b (h w) (c p q)", p=PATCH, q=PATCH),
            # The module multiplies both by 1000 itself.
            timestep=timesteps.to(noisy.device, torch.float32),
            guidance=torch.full((noisy.shape[0],), EMBEDDED_GUIDANCE, device=noisy.device),
            encoder_hidden_states=tokens,
            pooled_projections=expand(prompt["pooled"], noisy),
            img_ids=_image_ids(rows, columns).to(noisy.device),
            txt_ids=torch.zeros(tokens.shape[1], 3, device=noisy.device),
            return_dict=False,
        )[0]
        return rearrange(packed, "b (h w) (c p q) -> b c (h p) (w q)", h=rows, w=columns, p=PATCH, q=PATCH)


def _image_ids(rows: int, columns: int) -> Tensor:
    """Positions of the image tokens, [rows · columns, 3]: nothing, row, column."""
    ids = torch.zeros(rows, columns, 3)
    ids[..., 1] = torch.arange(rows)[:, None]
    ids[..., 2] = torch.arange(columns)[None, :]
    return ids.reshape(-1, 3)
