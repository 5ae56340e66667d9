"""The transformer of Qwen-Image, whose native keys are diffusers' own."""

from __future__ import annotations

import re
from collections.abc import Iterable

from .places import Place

KEY = re.compile(
    r"(img_in|txt_in|txt_norm|time_text_embed\.timestep_embedder\.linear_[12]|norm_out\.linear|proj_out"
    r"|transformer_blocks\.\d+\.(attn\.(to_[qkv]|to_out\.0|add_[qkv]_proj|to_add_out|norm_(added_)?[qk])"
    r"|(img|txt)_(mod\.1|mlp\.net\.(0\.proj|2))))\.(weight|bias)"
)


def qwen_image_layout(keys: Iterable[str]) -> dict[str, Place]:
    """The place of every Qwen-Image transformer key: itself."""
    return {key: Place(key) for key in keys if KEY.fullmatch(key)}
