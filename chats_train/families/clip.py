"""What SDXL and SD3 take from CLIP's text encoders, and its tokens as OpenCLIP pads them."""

from __future__ import annotations

from typing import Any

from torch import Tensor


def last_hidden_but_one(encoder: Any, ids: Tensor) -> tuple[Tensor, Tensor]:
    """What SDXL and SD3 take from a CLIP text encoder with projection: the hidden states before the last layer
    [batch, tokens, dim], and the projected pooled text [batch, dim]."""
    output = encoder(ids, output_hidden_states=True)
    return output.hidden_states[-2], output.text_embeds


def open_clip_ids(ids: Tensor, end: int) -> Tensor:
    """Token ids [batch, tokens] of OpenAI's CLIP, which pads with its ``end`` of text, as OpenCLIP pads them: with 0.

    A departure from diffusers, whose second tokenizer calls token 0 ("!") its padding and then reads every "!" of a
    prompt as that, where OpenCLIP and ComfyUI read the word "!".
    """
    ends = ids == end
    after_the_end = ends.cumsum(dim=1) - ends.long() > 0
    return ids.masked_fill(after_the_end, 0)
