"""Stable Diffusion 3 and 3.5: a transformer on rectified flow, under two CLIPs and a T5."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from chats.pair import PredictionType

from ..settings.facts import FAMILIES
from .base import Denoiser, Family
from .clip import last_hidden_but_one, open_clip_ids
from .config_keys import FLOW_NOISE, ConfigKeys
from .prompts import Prompt, expand
from .schedule import TRAIN_TIMESTEPS, FlowSchedule, Schedule
from .sources import Shapes

# ComfyUI samples every SD3 with it, diffusers' scheduler configs state it, and its trainer draws timesteps with it.
SHIFT = 3.0
HEAD_DIM = 64


class SD3(Family):
    facts = FAMILIES["sd3"]
    denoiser_keys = ConfigKeys(
        honoured={
            "patch_size": (facts.patch,),
            "in_channels": (16,),
            "out_channels": (16,),
            "attention_head_dim": (HEAD_DIM,),
            "qk_norm": (None, "rms_norm"),
        },
        built=(
            "num_layers num_attention_heads joint_attention_dim caption_projection_dim pooled_projection_dim "
            "pos_embed_max_size dual_attention_layers"
        ),
        # Of the table of positions, which comes with the weights.
        idle="sample_size",
    )
    noise_keys = FLOW_NOISE.but(shift=(SHIFT,), use_dynamic_shifting=(False,))

    @staticmethod
    def part_classes() -> dict[str, type]:
        from diffusers import AutoencoderKL, SD3Transformer2DModel
        from transformers import CLIPTextModelWithProjection, T5EncoderModel

        return {
            "transformer": SD3Transformer2DModel,
            "vae": AutoencoderKL,
            "text_encoder": CLIPTextModelWithProjection,
            "text_encoder_2": CLIPTextModelWithProjection,
            "text_encoder_3": T5EncoderModel,
        }

    def _make_schedule(self, prediction_type: PredictionType | None) -> Schedule:
        require_flow(prediction_type)
        return FlowSchedule(shift=SHIFT, training_shift=SHIFT)

    @staticmethod
    def denoiser_config(native: Shapes) -> dict[str, Any]:
        # SD3 medium, SD3.5 medium and large differ.
        hidden, channels, patch, _ = native["x_embedder.proj.weight"]
        text_width = native["context_embedder.weight"]
        blocks = {int(key.split(".")[1]) for key in native if key.startswith("joint_blocks.")}
        return {
            "_class_name": "SD3Transformer2DModel",
            "num_layers": len(blocks),
            "num_attention_heads": hidden // HEAD_DIM,
            "attention_head_dim": HEAD_DIM,
            "patch_size": patch,
            "in_channels": channels,
            "out_channels": native["final_layer.linear.weight"][0] // patch**2,
            "joint_attention_dim": text_width[1],
            "caption_projection_dim": text_width[0],
            "pooled_projection_dim": native["y_embedder.mlp.0.weight"][1],
            "pos_embed_max_size": round(native["pos_embed"][1] ** 0.5),
            "qk_norm": "rms_norm" if "joint_blocks.0.x_block.attn.ln_q.weight" in native else None,
            "dual_attention_layers": tuple(
                sorted(block for block in blocks if f"joint_blocks.{block}.x_block.attn2.qkv.weight" in native)
            ),
        }

    def prompt_shapes(self) -> dict[str, tuple[int, ...]]:
        clip_l, clip_g, t5 = (self.source.config(part) for part in self.facts.text_parts)
        tokens = clip_l["max_position_embeddings"] + self.facts.t5_tokens
        return {"tokens": (tokens, t5["d_model"]), "pooled": (clip_l["projection_dim"] + clip_g["projection_dim"],)}

    @torch.no_grad()
    def encode_prompt(self, prompts: list[str]) -> Prompt:
        clip_l, clip_g, t5 = self.text_encoders
        ids = self._token_ids(0, prompts, clip_l.config.max_position_embeddings)
        hidden_l, pooled_l = last_hidden_but_one(clip_l, ids)
        hidden_g, pooled_g = last_hidden_but_one(clip_g, open_clip_ids(ids, self.tokenizers[0].eos_token_id))
        clip_tokens = torch.cat([hidden_l, hidden_g], dim=-1)
        t5_tokens = t5(self._token_ids(1, prompts, self.facts.t5_tokens)).last_hidden_state
        padded = torch.nn.functional.pad(clip_tokens, (0, t5_tokens.shape[-1] - clip_tokens.shape[-1]))
        return {"tokens": torch.cat([padded, t5_tokens], dim=1), "pooled": torch.cat([pooled_l, pooled_g], dim=-1)}

    def predict(
        self, denoiser: Denoiser, noisy: Tensor, timesteps: Tensor, prompt: Prompt, sizes: Tensor | None = None
    ) -> Tensor:
        return denoiser(
            hidden_states=noisy,
            timestep=timesteps.to(noisy.device, torch.float32) * TRAIN_TIMESTEPS,
            encoder_hidden_states=expand(prompt["tokens"], noisy),
            pooled_projections=expand(prompt["pooled"], noisy),
            return_dict=False,
        )[0]


def require_flow(prediction_type: PredictionType | None) -> None:
    """Raises ValueError when the config asks a flow model for another prediction."""
    if prediction_type not in (None, "flow"):
        raise ValueError(f"`prediction_type` is `{prediction_type}`; SD3 and Flux predict `flow`: leave it out")
