"""The transformers of Flux.1 and Chroma: diffusers' keys to the native ones of Black Forest Labs.

Single blocks fuse q, k, v and the first layer of the MLP. The modulation before the output holds (shift, scale)
natively where diffusers holds (scale, shift). Norm weights are called `scale` in the published files. Chroma's
modulations come from one small network instead.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from .places import Place, placed, rename

TOP = {
    "x_embedder": "img_in",
    "context_embedder": "txt_in",
    "time_text_embed.timestep_embedder.linear_1": "time_in.in_layer",
    "time_text_embed.timestep_embedder.linear_2": "time_in.out_layer",
    "time_text_embed.guidance_embedder.linear_1": "guidance_in.in_layer",
    "time_text_embed.guidance_embedder.linear_2": "guidance_in.out_layer",
    "time_text_embed.text_embedder.linear_1": "vector_in.in_layer",
    "time_text_embed.text_embedder.linear_2": "vector_in.out_layer",
    "norm_out.linear": "final_layer.adaLN_modulation.1",
    "proj_out": "final_layer.linear",
}
DOUBLE = {
    "norm1.linear": "img_mod.lin",
    "norm1_context.linear": "txt_mod.lin",
    "attn.to_out.0": "img_attn.proj",
    "attn.to_add_out": "txt_attn.proj",
    "attn.norm_q.weight": "img_attn.norm.query_norm.scale",
    "attn.norm_k.weight": "img_attn.norm.key_norm.scale",
    "attn.norm_added_q.weight": "txt_attn.norm.query_norm.scale",
    "attn.norm_added_k.weight": "txt_attn.norm.key_norm.scale",
    "ff.net.0.proj": "img_mlp.0",
    "ff.net.2": "img_mlp.2",
    "ff_context.net.0.proj": "txt_mlp.0",
    "ff_context.net.2": "txt_mlp.2",
}
SINGLE = {
    "norm.linear": "modulation.lin",
    "attn.norm_q.weight": "norm.query_norm.scale",
    "attn.norm_k.weight": "norm.key_norm.scale",
    "proj_out": "linear2",
}
DOUBLE_FUSED = {
    "img_attn.qkv": ("attn.to_q", "attn.to_k", "attn.to_v"),
    "txt_attn.qkv": ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
}
SINGLE_FUSED = {"linear1": ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp")}
KEY = re.compile(r"(single_)?transformer_blocks\.(\d+)\.(.+)")
GUIDANCE = {
    "in_proj": "in_proj",
    "out_proj": "out_proj",
    "linear_1": "in_layer",
    "linear_2": "out_layer",
    "weight": "scale",
}
GUIDANCE_KEY = re.compile(r"(distilled_guidance_layer\.(?:(?:layers|norms)\.\d+\.)?)(.+)")


def flux_layout(keys: Iterable[str]) -> dict[str, Place]:
    """The native place of every Flux transformer key that has one."""
    return placed(keys, _place)


def _place(key: str) -> Place | None:
    if (match := GUIDANCE_KEY.fullmatch(key)) is not None:
        native = rename(match.group(2), GUIDANCE)
        return None if native is None else Place(f"{match.group(1)}{native}")
    match = KEY.fullmatch(key)
    if match is None:
        native = rename(key, TOP)
        return None if native is None else Place(native, swapped=key.startswith("norm_out."))
    single, number, tail = match.groups()
    parent = f"{'single' if single else 'double'}_blocks.{number}"
    module, _, end = tail.rpartition(".")
    for fused, names in (SINGLE_FUSED if single else DOUBLE_FUSED).items():
        if module in names:
            return Place(f"{parent}.{fused}.{end}", names.index(module), len(names))
    native = rename(tail, SINGLE if single else DOUBLE)
    return None if native is None else Place(f"{parent}.{native}")
