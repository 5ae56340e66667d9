"""The transformer of Z-Image: diffusers' keys to the native ones, which ComfyUI shares with Lumina 2.

The native layout fuses q, k and v. diffusers names its first and last layer by the size of their patches.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from .places import Place, placed, rename

TOP = {
    "all_x_embedder.2-1": "x_embedder",
    "all_final_layer.2-1": "final_layer",
    "cap_embedder": "cap_embedder",
    "t_embedder": "t_embedder",
    "x_pad_token": "x_pad_token",
    "cap_pad_token": "cap_pad_token",
}
BLOCK = {
    "attention.to_out.0": "attention.out",
    "attention.norm_q": "attention.q_norm",
    "attention.norm_k": "attention.k_norm",
    "attention_norm1": "attention_norm1",
    "attention_norm2": "attention_norm2",
    "ffn_norm1": "ffn_norm1",
    "ffn_norm2": "ffn_norm2",
    "feed_forward": "feed_forward",
    "adaLN_modulation": "adaLN_modulation",
}
QKV = ("attention.to_q", "attention.to_k", "attention.to_v")
KEY = re.compile(r"((?:layers|noise_refiner|context_refiner)\.\d+)\.(.+)")


def z_image_layout(keys: Iterable[str]) -> dict[str, Place]:
    """The native place of every Z-Image transformer key that has one."""
    return placed(keys, _place)


def _place(key: str) -> Place | None:
    match = KEY.fullmatch(key)
    if match is None:
        native = rename(key, TOP)
        return None if native is None else Place(native)
    parent, tail = match.groups()
    module, _, end = tail.rpartition(".")
    if module in QKV:
        return Place(f"{parent}.attention.qkv.{end}", QKV.index(module), len(QKV))
    native = rename(tail, BLOCK)
    return None if native is None else Place(f"{parent}.{native}")
