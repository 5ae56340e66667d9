"""The transformer of SD3 and SD3.5: diffusers' keys to the native (MMDiT) ones.

The native layout fuses q, k and v of each stream. Two modulations hold (shift, scale) where diffusers holds (scale,
shift): the one before the output, and that of the text stream in the last block, which has nothing behind it but the
attention.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from .places import Place, placed, rename

TOP = {
    "pos_embed.pos_embed": "pos_embed",
    "pos_embed.proj": "x_embedder.proj",
    "context_embedder": "context_embedder",
    "time_text_embed.timestep_embedder.linear_1": "t_embedder.mlp.0",
    "time_text_embed.timestep_embedder.linear_2": "t_embedder.mlp.2",
    "time_text_embed.text_embedder.linear_1": "y_embedder.mlp.0",
    "time_text_embed.text_embedder.linear_2": "y_embedder.mlp.2",
    "norm_out.linear": "final_layer.adaLN_modulation.1",
    "proj_out": "final_layer.linear",
}
BLOCK = {
    "norm1.linear": "x_block.adaLN_modulation.1",
    "norm1_context.linear": "context_block.adaLN_modulation.1",
    "attn.to_out.0": "x_block.attn.proj",
    "attn.norm_q": "x_block.attn.ln_q",
    "attn.norm_k": "x_block.attn.ln_k",
    "attn.to_add_out": "context_block.attn.proj",
    "attn.norm_added_q": "context_block.attn.ln_q",
    "attn.norm_added_k": "context_block.attn.ln_k",
    "attn2.to_out.0": "x_block.attn2.proj",
    "attn2.norm_q": "x_block.attn2.ln_q",
    "attn2.norm_k": "x_block.attn2.ln_k",
    "ff.net.0.proj": "x_block.mlp.fc1",
    "ff.net.2": "x_block.mlp.fc2",
    "ff_context.net.0.proj": "context_block.mlp.fc1",
    "ff_context.net.2": "context_block.mlp.fc2",
}
# One entry per fused tensor, its parts in order.
FUSED = {
    "x_block.attn.qkv": ("attn.to_q", "attn.to_k", "attn.to_v"),
    "context_block.attn.qkv": ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
    "x_block.attn2.qkv": ("attn2.to_q", "attn2.to_k", "attn2.to_v"),
}
PARTS = {name: (fused, part, len(names)) for fused, names in FUSED.items() for part, name in enumerate(names)}
KEY = re.compile(r"transformer_blocks\.(\d+)\.(.+)")


def mmdit_layout(keys: Iterable[str]) -> dict[str, Place]:
    """The native place of every SD3 transformer key that has one."""
    keys = list(keys)
    last = max((int(match.group(1)) for match in map(KEY.fullmatch, keys) if match), default=-1)
    return placed(keys, lambda key: _place(key, last))


def _place(key: str, last: int) -> Place | None:
    match = KEY.fullmatch(key)
    if match is None:
        native = rename(key, TOP)
        return None if native is None else Place(native, swapped=key.startswith("norm_out."))
    parent, tail = f"joint_blocks.{match.group(1)}", match.group(2)
    module, _, end = tail.rpartition(".")
    if module in PARTS:
        fused, part, parts = PARTS[module]
        return Place(f"{parent}.{fused}.{end}", part, parts)
    native = rename(tail, BLOCK)
    return (
        None
        if native is None
        else Place(f"{parent}.{native}", swapped=int(match.group(1)) == last and tail.startswith("norm1_context."))
    )
