"""Z-Image, the base model: one stream of picture and text on rectified flow, under a Qwen3 and prompts of their own
lengths."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from chats.pair import PredictionType

from ..settings.facts import FAMILIES
from .base import Denoiser, Family
from .config_keys import FLOW_NOISE, ConfigKeys
from .prompts import MASK, Prompt, expand
from .schedule import FlowSchedule, Schedule
from .sd3 import require_flow
from .sources import Shapes

# ComfyUI samples every Z-Image with it: timesteps are drawn as they will be sampled.
SHIFT = 3.0
# Of the distilled model's own scheduler, the one thing in which its folder differs.
TURBO_SHIFT = 3.0
HEAD_DIM = 128


class ZImage(Family):
    facts = FAMILIES["z_image"]
    # Of a chat with the language model; ComfyUI's too.
    template = "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"
    denoiser_keys = ConfigKeys(
        honoured={
            "all_patch_size": (facts.patch,),
            "all_f_patch_size": (1,),
            "in_channels": (16,),
            "norm_eps": (1e-5,),
            "qk_norm": (True,),
            "rope_theta": (256,),
            "t_scale": (1000,),
            "axes_dims": ((32, 48, 48),),
            # Of the model that edits pictures.
            "siglip_feat_dim": (None,),
        },
        built="dim n_layers n_refiner_layers n_heads n_kv_heads cap_feat_dim",
        # How far the table of positions goes.
        idle="axes_lens",
    )
    noise_keys = FLOW_NOISE

    @staticmethod
    def part_classes() -> dict[str, type]:
        from diffusers import AutoencoderKL, ZImageTransformer2DModel
        from transformers import Qwen3Model

        return {"transformer": ZImageTransformer2DModel, "vae": AutoencoderKL, "text_encoder": Qwen3Model}

    @property
    def notes(self) -> list[str]:
        if self.source.noise.get("shift") != TURBO_SHIFT:
            return super().notes
        turbo = (
            f"{self.source.where('scheduler')}: `shift` is {TURBO_SHIFT:g}, as Z-Image-Turbo states it, which was "
            "distilled for a few steps without guidance; a pair needs Z-Image itself, whose shift is 6"
        )
        return [*super().notes, turbo]

    def _make_schedule(self, prediction_type: PredictionType | None) -> Schedule:
        require_flow(prediction_type)
        return FlowSchedule(shift=SHIFT, training_shift=SHIFT)

    @staticmethod
    def denoiser_config(native: Shapes) -> dict[str, Any]:
        dim, text_width = native["cap_embedder.1.weight"]

        def count(blocks: str) -> int:
            return len({key.split(".")[1] for key in native if key.startswith(f"{blocks}.")})

        return {
            "_class_name": "ZImageTransformer2DModel",
            "in_channels": native["x_embedder.weight"][1] // 4,
            "dim": dim,
            "n_layers": count("layers"),
            "n_refiner_layers": count("noise_refiner"),
            "n_heads": dim // HEAD_DIM,
            "n_kv_heads": dim // HEAD_DIM,
            "cap_feat_dim": text_width,
        }

    def prompt_shapes(self) -> dict[str, tuple[int, ...]]:
        longest = self.facts.longest_prompt
        return {"tokens": (longest, self.source.config("text_encoder")["hidden_size"]), MASK: (longest,)}

    @torch.no_grad()
    def encode_prompt(self, prompts: list[str]) -> Prompt:
        (encoder,) = self.text_encoders

        def last_but_one(ids: Tensor) -> Tensor:
            return encoder(ids, output_hidden_states=True, use_cache=False).hidden_states[-2]

        return self._at_own_lengths(prompts, last_but_one)

    def predict(
        self, denoiser: Denoiser, noisy: Tensor, timesteps: Tensor, prompt: Prompt, sizes: Tensor | None = None
    ) -> Tensor:
        tokens = expand(prompt["tokens"], noisy)
        lengths = prompt[MASK].sum(dim=1).expand(len(noisy)).tolist()
        # The module takes pictures of one frame and prompts as lists, and predicts z₀ − ε at 1 − t.
        predicted = denoiser(
            list(noisy.unsqueeze(2).unbind()),
            1 - timesteps.to(noisy.device, torch.float32),
            [row[:length] for row, length in zip(tokens, lengths, strict=True)],
            return_dict=False,
        )[0]
        return -torch.stack(predicted).squeeze(2)
