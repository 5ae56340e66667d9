"""Chroma: Flux.1's transformer, not distilled, under a T5 alone and prompts of their own lengths."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn

from chats.pair import PredictionType

from ..settings.facts import FAMILIES
from .base import Denoiser, Family
from .config_keys import FLOW_NOISE, ConfigKeys
from .flux import HEAD_DIM, SAMPLING_MU, SAMPLING_TABLE_SIZE, image_ids
from .prompts import MASK, Prompt, expand
from .schedule import FlowSchedule, Schedule
from .sd3 import require_flow
from .source_error import SourceError
from .sources import Shapes

GUIDANCE = "distilled_guidance_layer"
# ComfyUI makes this many modulations for every Chroma, and takes the last two for the output's.
MODULATIONS = 344


class Chroma(Family):
    facts = FAMILIES["chroma"]
    denoiser_keys = ConfigKeys(
        honoured={
            "patch_size": (1,),
            "in_channels": (64,),
            "out_channels": (None, 64),
            "attention_head_dim": (HEAD_DIM,),
            "axes_dims_rope": ((16, 56, 56),),
            "approximator_num_channels": (64,),
        },
        built=(
            "num_layers num_single_layers num_attention_heads joint_attention_dim approximator_hidden_dim "
            "approximator_layers"
        ),
    )
    noise_keys = FLOW_NOISE

    @staticmethod
    def part_classes() -> dict[str, type]:
        from diffusers import AutoencoderKL, ChromaTransformer2DModel
        from transformers import T5EncoderModel

        return {"transformer": ChromaTransformer2DModel, "vae": AutoencoderKL, "text_encoder": T5EncoderModel}

    def _make_schedule(self, prediction_type: PredictionType | None) -> Schedule:
        require_flow(prediction_type)
        self._require_depth()
        # ComfyUI samples it with Flux's shift; timesteps are drawn unshifted, as Flux's.
        return FlowSchedule(shift=math.exp(SAMPLING_MU), training_shift=1.0, table_size=SAMPLING_TABLE_SIZE)

    def _require_depth(self) -> None:
        config = self.source.config("transformer")
        double, single = config["num_layers"], config["num_single_layers"]
        count = 12 * double + 3 * single + 2
        if config["joint_attention_dim"] == self.facts.comfy_sizes.text_width and count != MODULATIONS:
            raise SourceError(
                f"{self.source.where('transformer')}: `num_layers` is {double} and `num_single_layers` {single}, but "
                "ComfyUI modulates every Chroma as if it had 19 and 38; give Chroma1-HD or Chroma1-Base"
            )

    @staticmethod
    def denoiser_config(native: Shapes) -> dict[str, Any]:
        hidden, packed_channels = native["img_in.weight"]
        approximator, channels = native[f"{GUIDANCE}.in_proj.weight"]

        def count(beginning: str) -> int:
            return len({key.removeprefix(beginning).split(".")[0] for key in native if key.startswith(beginning)})

        return {
            "_class_name": "ChromaTransformer2DModel",
            "in_channels": packed_channels,
            "num_layers": count("double_blocks."),
            "num_single_layers": count("single_blocks."),
            "attention_head_dim": HEAD_DIM,
            "num_attention_heads": hidden // HEAD_DIM,
            "joint_attention_dim": native["txt_in.weight"][1],
            "approximator_num_channels": channels,
            "approximator_hidden_dim": approximator,
            "approximator_layers": count(f"{GUIDANCE}.layers."),
        }

    def prompt_shapes(self) -> dict[str, tuple[int, ...]]:
        longest = self.facts.longest_prompt
        return {"tokens": (longest, self.source.config("text_encoder")["d_model"]), MASK: (longest,)}

    @torch.no_grad()
    def encode_prompt(self, prompts: list[str]) -> Prompt:
        (t5,) = self.text_encoders
        # ComfyUI pads no prompt of Chroma's unless it is told to; diffusers' pipeline shows one token of padding.
        return self._at_own_lengths(prompts, lambda ids: t5(ids).last_hidden_state)

    def _readied(self, module: nn.Module) -> nn.Module:
        module.register_forward_pre_hook(_keep_mask, with_kwargs=True)
        return module

    def predict(
        self, denoiser: Denoiser, noisy: Tensor, timesteps: Tensor, prompt: Prompt, sizes: Tensor | None = None
    ) -> Tensor:
        patch = self.facts.patch
        rows, columns = (side // patch for side in noisy.shape[-2:])
        tokens = expand(prompt["tokens"], noisy)
        packed = denoiser(
            hidden_states=rearrange(noisy, "b c (h p) (w q) -> b (h w) (c p q)", p=patch, q=patch),
            # The module multiplies it by 1000 itself.
            timestep=timesteps.to(noisy.device, torch.float32),
            encoder_hidden_states=tokens,
            img_ids=image_ids(rows, columns).to(noisy.device),
            txt_ids=torch.zeros(tokens.shape[1], 3, device=noisy.device),
            attention_mask=_attended(expand(prompt[MASK], noisy).bool(), rows * columns),
            return_dict=False,
        )[0]
        return rearrange(packed, "b (h w) (c p q) -> b c (h p) (w q)", h=rows, w=columns, p=patch, q=patch)


def _attended(text: Tensor, image_tokens: int) -> Tensor | None:
    """Which tokens are attended to, [batch, tokens and image tokens]; None where all are.

    True or false: the numbers that diffusers' pipeline gives are added to the scores, and mask nothing.
    """
    return None if text.all() else torch.nn.functional.pad(text, (0, image_tokens), value=True)


def _keep_mask(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Gives the mask of this pass to the single blocks under gradient checkpointing too, where diffusers leaves it
    out."""
    function = module._gradient_checkpointing_func if module.gradient_checkpointing else None
    if function is not None:
        plain = function.args[0] if isinstance(function, partial) and function.func is _checkpointed else function
        module._gradient_checkpointing_func = partial(_checkpointed, plain, kwargs.get("attention_mask"))


def _checkpointed(plain: Any, mask: Tensor | None, block: Any, *inputs: Any) -> Any:
    from diffusers.models.transformers.transformer_chroma import ChromaSingleTransformerBlock

    # Sharding makes a subclass of each block's class, with another name.
    return plain(block, *inputs, mask) if isinstance(block, ChromaSingleTransformerBlock) else plain(block, *inputs)
