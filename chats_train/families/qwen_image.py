"""Qwen-Image: two streams of picture and text on rectified flow, under a Qwen2.5-VL and prompts of their own lengths,
over a video's VAE."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from einops import rearrange
from torch import Tensor

from chats.pair import PredictionType

from ..settings.facts import FAMILIES
from .autoencoders import QwenAutoencoder
from .base import Denoiser, Family
from .config_keys import FLOW_NOISE, ConfigKeys
from .prompts import MASK, Prompt, expand
from .schedule import FlowSchedule, Schedule
from .sd3 import require_flow
from .sources import Shapes

# ComfyUI's shift for every Qwen-Image is this mu at every size, e^mu in the terms of `FlowSchedule`.
SAMPLING_MU = 1.15
SAMPLING_TABLE_SIZE = 10_000
HEAD_DIM = 128
# The line that the shift of the base's own scheduler follows, over the tokens of a picture: what the published one
# states, for a single file.
LINE = {"base_image_seq_len": 256, "max_image_seq_len": 8192, "base_shift": 0.5, "max_shift": 0.9}


class QwenImage(Family):
    facts = FAMILIES["qwen_image"]
    autoencoder = QwenAutoencoder()
    # ComfyUI's too. What comes before the prompt is left out of what the denoiser sees.
    template = (
        "<|im_start|>system\nDescribe the image by detailing the color, shape, size, texture, quantity, text, spatial "
        "relationships of the objects and background:<|im_end|>\n<|im_start|>user\n{}<|im_end|>\n"
        "<|im_start|>assistant\n"
    )
    denoiser_keys = ConfigKeys(
        honoured={
            "patch_size": (facts.patch,),
            "in_channels": (64,),
            "out_channels": (16,),
            "attention_head_dim": (HEAD_DIM,),
            "axes_dims_rope": ((16, 56, 56),),
            "guidance_embeds": (False,),
            # Of the models that edit pictures, and of the one with layers.
            "zero_cond_t": (False,),
            "use_additional_t_cond": (False,),
            "use_layer3d_rope": (False,),
        },
        built="num_layers num_attention_heads joint_attention_dim",
        # The first version's, of nothing that it has.
        idle="pooled_projection_dim",
    )
    noise_keys = FLOW_NOISE

    @staticmethod
    def part_classes() -> dict[str, type]:
        from diffusers import AutoencoderKLQwenImage, QwenImageTransformer2DModel
        from transformers import Qwen2_5_VLForConditionalGeneration

        return {
            "transformer": QwenImageTransformer2DModel,
            "vae": AutoencoderKLQwenImage,
            "text_encoder": Qwen2_5_VLForConditionalGeneration,
        }

    def _make_schedule(self, prediction_type: PredictionType | None) -> FlowSchedule:
        require_flow(prediction_type)
        return FlowSchedule(shift=math.exp(SAMPLING_MU), training_shift=1.0, table_size=SAMPLING_TABLE_SIZE)

    def schedule_for(self, size: Sequence[int]) -> Schedule:
        """Trained with the shift that the base's own scheduler has for a picture of this size."""
        height, width = (side // self.facts.patch for side in size)
        line = {**LINE, **{key: self.source.noise[key] for key in LINE if key in self.source.noise}}
        first, last = line["base_image_seq_len"], line["max_image_seq_len"]
        share = (height * width - first) / (last - first)
        mu = line["base_shift"] + share * (line["max_shift"] - line["base_shift"])
        assert isinstance(self.schedule, FlowSchedule)
        return self.schedule.trained_with(math.exp(mu))

    @staticmethod
    def denoiser_config(native: Shapes) -> dict[str, Any]:
        hidden, channels = native["img_in.weight"]
        return {
            "_class_name": "QwenImageTransformer2DModel",
            "in_channels": channels,
            "out_channels": native["proj_out.weight"][0] // 4,
            "num_layers": len({key.split(".")[1] for key in native if key.startswith("transformer_blocks.")}),
            "attention_head_dim": HEAD_DIM,
            "num_attention_heads": hidden // HEAD_DIM,
            "joint_attention_dim": native["txt_in.weight"][1],
        }

    def prompt_shapes(self) -> dict[str, tuple[int, ...]]:
        config, longest = self.source.config("text_encoder"), self.facts.longest_prompt
        # Older versions of transformers put the language model's configuration beside the other's.
        return {"tokens": (longest, {**config, **config.get("text_config", {})}["hidden_size"]), MASK: (longest,)}

    @torch.no_grad()
    def encode_prompt(self, prompts: list[str]) -> Prompt:
        # Without its head, whose answer nobody asks for.
        model = self.text_encoders[0].model
        return self._at_own_lengths(prompts, lambda ids: model(input_ids=ids, use_cache=False).last_hidden_state)

    def predict(
        self, denoiser: Denoiser, noisy: Tensor, timesteps: Tensor, prompt: Prompt, sizes: Tensor | None = None
    ) -> Tensor:
        patch = self.facts.patch
        rows, columns = (side // patch for side in noisy.shape[-2:])
        packed = denoiser(
            hidden_states=rearrange(noisy, "b c (h p) (w q) -> b (h w) (c p q)", p=patch, q=patch),
            # The module multiplies it by 1000 itself.
            timestep=timesteps.to(noisy.device, torch.float32),
            encoder_hidden_states=expand(prompt["tokens"], noisy),
            encoder_hidden_states_mask=expand(prompt[MASK], noisy).bool(),
            img_shapes=[[(1, rows, columns)]] * len(noisy),
            return_dict=False,
        )[0]
        return rearrange(packed, "b (h w) (c p q) -> b c (h p) (w q)", h=rows, w=columns, p=patch, q=patch)
