"""The transformer of Krea 2: diffusers' keys to the native ones of Krea.

Nothing is fused. Norm weights are called `scale`, and the six rows of a block's modulation are one vector natively.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from .places import Place, placed, rename

TOP = {
    "img_in": "first",
    "time_embed.linear_1": "tmlp.0",
    "time_embed.linear_2": "tmlp.2",
    "time_mod_proj": "tproj.1",
    "txt_in.norm.weight": "txtmlp.0.scale",
    "txt_in.linear_1": "txtmlp.1",
    "txt_in.linear_2": "txtmlp.3",
    "text_fusion.projector": "txtfusion.projector",
    "final_layer.norm.weight": "last.norm.scale",
    "final_layer.linear": "last.linear",
    "final_layer.scale_shift_table": "last.modulation.lin",
}
BLOCK = {
    "norm1.weight": "prenorm.scale",
    "norm2.weight": "postnorm.scale",
    "attn.norm_q.weight": "attn.qknorm.qnorm.scale",
    "attn.norm_k.weight": "attn.qknorm.knorm.scale",
    "attn.to_q": "attn.wq",
    "attn.to_k": "attn.wk",
    "attn.to_v": "attn.wv",
    "attn.to_gate": "attn.gate",
    "attn.to_out.0": "attn.wo",
    "ff": "mlp",
}
TABLE = "scale_shift_table"
KEY = re.compile(r"(transformer_blocks|text_fusion\.(?:layerwise|refiner)_blocks)\.(\d+)\.(.+)")


def krea2_layout(keys: Iterable[str]) -> dict[str, Place]:
    """The native place of every Krea 2 transformer key that has one."""
    return placed(keys, _place)


def _place(key: str) -> Place | None:
    match = KEY.fullmatch(key)
    if match is None:
        native = rename(key, TOP)
        return None if native is None else Place(native)
    blocks, number, tail = match.groups()
    in_text = blocks.startswith("text_fusion.")
    parent = f"{blocks.replace('text_fusion', 'txtfusion') if in_text else 'blocks'}.{number}"
    if tail == TABLE and not in_text:
        return Place(f"{parent}.mod.lin", flattened=True)
    native = rename(tail, BLOCK)
    return None if native is None else Place(f"{parent}.{native}")
