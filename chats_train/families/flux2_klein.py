"""Flux.2 Klein, the base models of 4 and 9 billion parameters: a transformer on rectified flow under a Qwen3."""

from __future__ import annotations

import math
from typing import Any

import torch
from einops import rearrange
from torch import Tensor

from chats.pair import PredictionType

from ..settings.facts import FAMILIES
from .autoencoders import Flux2Autoencoder
from .base import Denoiser, Family
from .config_keys import FLOW_NOISE, ConfigKeys
from .prompts import Prompt, expand
from .schedule import FlowSchedule, Schedule
from .sd3 import require_flow
from .sources import Shapes

# ComfyUI's mu for every Flux.2, at every size.
SAMPLING_MU = 2.02
SAMPLING_TABLE_SIZE = 10_000
HEAD_DIM = 128
# Of the text encoder's hidden states, the embeddings being number 0.
LAYERS = (9, 18, 27)
# What diffusers and ComfyUI bring prompts to.
TOKENS = 512
TEMPLATE = "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"


class Flux2Klein(Family):
    facts = FAMILIES["flux2_klein"]
    autoencoder = Flux2Autoencoder()
    denoiser_keys = ConfigKeys(
        honoured={
            "patch_size": (1,),
            "in_channels": (128,),
            "out_channels": (None, 128),
            "attention_head_dim": (HEAD_DIM,),
            "timestep_guidance_channels": (256,),
            "mlp_ratio": (3.0,),
            "axes_dims_rope": ((32, 32, 32, 32),),
            "rope_theta": (2000,),
            "eps": (1e-6,),
            # Flux.2-dev is told a guidance scale.
            "guidance_embeds": (False,),
        },
        built="num_layers num_single_layers num_attention_heads joint_attention_dim",
    )
    noise_keys = FLOW_NOISE
    index_keys = ConfigKeys(honoured={"is_distilled": (False,)})

    @staticmethod
    def part_classes() -> dict[str, type]:
        from diffusers import AutoencoderKLFlux2, Flux2Transformer2DModel
        from transformers import Qwen3Model

        return {"transformer": Flux2Transformer2DModel, "vae": AutoencoderKLFlux2, "text_encoder": Qwen3Model}

    def _make_schedule(self, prediction_type: PredictionType | None) -> Schedule:
        require_flow(prediction_type)
        return FlowSchedule(shift=math.exp(SAMPLING_MU), training_shift=1.0, table_size=SAMPLING_TABLE_SIZE)

    @staticmethod
    def denoiser_config(native: Shapes) -> dict[str, Any]:
        hidden, channels = native["img_in.weight"]
        return {
            "_class_name": "Flux2Transformer2DModel",
            "in_channels": channels,
            "num_layers": len({key.split(".")[1] for key in native if key.startswith("double_blocks.")}),
            "num_single_layers": len({key.split(".")[1] for key in native if key.startswith("single_blocks.")}),
            "attention_head_dim": HEAD_DIM,
            "num_attention_heads": hidden // HEAD_DIM,
            "joint_attention_dim": native["txt_in.weight"][1],
            "timestep_guidance_channels": native["time_in.in_layer.weight"][1],
            "mlp_ratio": native["double_blocks.0.img_mlp.2.weight"][1] / hidden,
            "guidance_embeds": "guidance_in.in_layer.weight" in native,
        }

    def prompt_shapes(self) -> dict[str, tuple[int, ...]]:
        width = self.source.config("text_encoder")["hidden_size"]
        return {"tokens": (TOKENS, len(LAYERS) * width)}

    @torch.no_grad()
    def encode_prompt(self, prompts: list[str]) -> Prompt:
        encoded = self.tokenizers[0](
            [TEMPLATE.format(prompt) for prompt in prompts],
            padding="max_length",
            padding_side="right",
            max_length=TOKENS,
            truncation=True,
            return_tensors="pt",
        ).to(self.device)
        # The denoiser reads the padding too, each token of which has seen the whole prompt.
        states = self.text_encoders[0](
            encoded.input_ids, attention_mask=encoded.attention_mask, output_hidden_states=True, use_cache=False
        ).hidden_states
        return {"tokens": torch.cat([states[layer] for layer in LAYERS], dim=-1)}

    def predict(
        self, denoiser: Denoiser, noisy: Tensor, timesteps: Tensor, prompt: Prompt, sizes: Tensor | None = None
    ) -> Tensor:
        rows, columns = noisy.shape[-2:]
        tokens = expand(prompt["tokens"], noisy)
        packed = denoiser(
            hidden_states=rearrange(noisy, "b c h w -> b (h w) c"),
            # The module multiplies it by 1000 itself.
            timestep=timesteps.to(noisy.device, torch.float32),
            encoder_hidden_states=tokens,
            img_ids=_positions(1, rows, columns, 1).to(noisy.device),
            txt_ids=_positions(1, 1, 1, tokens.shape[1]).to(noisy.device),
            return_dict=False,
        )[0]
        return rearrange(packed, "b (h w) c -> b c h w", h=rows, w=columns)


def _positions(*counts: int) -> Tensor:
    """Positions of tokens along picture, row, column and text, [tokens, 4]."""
    return torch.cartesian_prod(*(torch.arange(count) for count in counts))
