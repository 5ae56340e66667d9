"""Krea 2, the model before its distillation (Raw): a transformer on rectified flow under twelve layers of a Qwen3-VL,
prompts of their own lengths."""

from __future__ import annotations

import math
from typing import Any

import torch
from einops import rearrange
from torch import Tensor

from chats.pair import PredictionType

from ..settings.facts import FAMILIES
from .autoencoders import QwenAutoencoder
from .base import Denoiser, Family
from .config_keys import FLOW_NOISE, ConfigKeys
from .flux import SAMPLING_MU, SAMPLING_TABLE_SIZE, image_ids
from .prompts import MASK, Prompt, batch_of, expand
from .schedule import FlowSchedule, Schedule
from .sd3 import require_flow
from .sources import Shapes

HEAD_DIM = 128
# Of the text encoder's hidden states, the embeddings being number 0.
LAYERS = (2, 5, 8, 11, 14, 17, 20, 23, 26, 29, 32, 35)
# Of what is put around a prompt the denoiser is told the end alone, which stays where a prompt is cut.
BEFORE = (
    "<|im_start|>system\nDescribe the image by detailing the color, shape, size, texture, quantity, text, spatial "
    "relationships of the objects and background:<|im_end|>\n<|im_start|>user\n"
)
AFTER = "<|im_end|>\n<|im_start|>assistant\n"


class Krea2(Family):
    facts = FAMILIES["krea2"]
    autoencoder = QwenAutoencoder()
    denoiser_keys = ConfigKeys(
        honoured={
            "in_channels": (64,),
            "attention_head_dim": (HEAD_DIM,),
            "timestep_embed_dim": (256,),
            "num_text_layers": (len(LAYERS),),
            # What ComfyUI takes for granted.
            "text_num_attention_heads": (20,),
            "text_num_key_value_heads": (20,),
            "num_layerwise_text_blocks": (2,),
            "num_refiner_text_blocks": (2,),
            "axes_dims_rope": ((32, 48, 48),),
            "rope_theta": (1000.0,),
            "norm_eps": (1e-5,),
        },
        built=(
            "num_layers num_attention_heads num_key_value_heads intermediate_size text_hidden_dim "
            "text_intermediate_size"
        ),
    )
    noise_keys = FLOW_NOISE
    index_keys = ConfigKeys(
        honoured={"is_distilled": (False,), "text_encoder_select_layers": (None, LAYERS), "patch_size": (facts.patch,)}
    )

    @staticmethod
    def part_classes() -> dict[str, type]:
        from diffusers import AutoencoderKLQwenImage, Krea2Transformer2DModel
        from transformers import Qwen3VLModel

        return {"transformer": Krea2Transformer2DModel, "vae": AutoencoderKLQwenImage, "text_encoder": Qwen3VLModel}

    def _make_schedule(self, prediction_type: PredictionType | None) -> Schedule:
        require_flow(prediction_type)
        # ComfyUI's mu is Flux's.
        return FlowSchedule(shift=math.exp(SAMPLING_MU), training_shift=1.0, table_size=SAMPLING_TABLE_SIZE)

    @staticmethod
    def denoiser_config(native: Shapes) -> dict[str, Any]:
        hidden, packed_channels = native["first.weight"]
        text = "txtfusion.layerwise_blocks.0"
        return {
            "_class_name": "Krea2Transformer2DModel",
            "in_channels": packed_channels,
            "num_layers": len({key.split(".")[1] for key in native if key.startswith("blocks.")}),
            "attention_head_dim": HEAD_DIM,
            "num_attention_heads": hidden // HEAD_DIM,
            "num_key_value_heads": native["blocks.0.attn.wk.weight"][0] // HEAD_DIM,
            "intermediate_size": native["blocks.0.mlp.gate.weight"][0],
            "timestep_embed_dim": native["tmlp.0.weight"][1],
            "text_hidden_dim": native[f"{text}.attn.wq.weight"][1],
            "num_text_layers": native["txtfusion.projector.weight"][1],
            "text_intermediate_size": native[f"{text}.mlp.gate.weight"][0],
        }

    def prompt_shapes(self) -> dict[str, tuple[int, ...]]:
        longest, width = self.facts.longest_prompt, self.source.config("text_encoder")["text_config"]["hidden_size"]
        return {"tokens": (longest, len(LAYERS) * width), MASK: (longest,)}

    @torch.no_grad()
    def encode_prompt(self, prompts: list[str]) -> Prompt:
        (tokenizer,), (encoder,) = self.tokenizers, self.text_encoders
        before, after = (tokenizer(text).input_ids for text in (BEFORE, AFTER))
        longest = len(before) + self.facts.longest_prompt - len(after)
        rows = []
        for prompt in prompts:
            ids = tokenizer(BEFORE + prompt, max_length=longest, truncation=True).input_ids + after
            states = encoder(torch.tensor([ids], device=self.device), output_hidden_states=True).hidden_states
            tokens = torch.cat([states[layer][0, len(before) :] for layer in LAYERS], dim=-1)
            rows.append({"tokens": tokens, MASK: torch.ones(len(tokens), dtype=torch.bool, device=self.device)})
        return batch_of(rows)

    def predict(
        self, denoiser: Denoiser, noisy: Tensor, timesteps: Tensor, prompt: Prompt, sizes: Tensor | None = None
    ) -> Tensor:
        patch = self.facts.patch
        rows, columns = (side // patch for side in noisy.shape[-2:])
        tokens, mask = expand(prompt["tokens"], noisy), expand(prompt[MASK], noisy).bool()
        text_ids = torch.zeros(tokens.shape[1], 3)
        packed = denoiser(
            hidden_states=rearrange(noisy, "b c (h p) (w q) -> b (h w) (c p q)", p=patch, q=patch),
            encoder_hidden_states=rearrange(tokens, "b t (l d) -> b t l d", l=len(LAYERS)),
            # The module multiplies it by 1000 itself.
            timestep=timesteps.to(noisy.device, torch.float32),
            position_ids=torch.cat([text_ids, image_ids(rows, columns)]).to(noisy.device),
            encoder_attention_mask=None if mask.all() else mask,
            return_dict=False,
        )[0]
        return rearrange(packed, "b (h w) (c p q) -> b c (h p) (w q)", h=rows, w=columns, p=patch, q=patch)
