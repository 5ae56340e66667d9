"""The transformer of Flux.2: diffusers' keys to the native ones of Black Forest Labs.

Double blocks fuse q, k and v; single blocks are fused in both worlds. The modulation before the output holds (shift,
scale) natively where diffusers holds (scale, shift). Norm weights are called `scale` in the published files.
"""

from __future__ import annotations

from collections.abc import Iterable

from .flux_blocks import DOUBLE_FUSED, KEY
from .places import Place, placed, rename

TOP = {
    "x_embedder": "img_in",
    "context_embedder": "txt_in",
    "time_guidance_embed.timestep_embedder.linear_1": "time_in.in_layer",
    "time_guidance_embed.timestep_embedder.linear_2": "time_in.out_layer",
    "time_guidance_embed.guidance_embedder.linear_1": "guidance_in.in_layer",
    "time_guidance_embed.guidance_embedder.linear_2": "guidance_in.out_layer",
    "double_stream_modulation_img.linear": "double_stream_modulation_img.lin",
    "double_stream_modulation_txt.linear": "double_stream_modulation_txt.lin",
    "single_stream_modulation.linear": "single_stream_modulation.lin",
    "norm_out.linear": "final_layer.adaLN_modulation.1",
    "proj_out": "final_layer.linear",
}
DOUBLE = {
    "attn.to_out.0": "img_attn.proj",
    "attn.to_add_out": "txt_attn.proj",
    "attn.norm_q.weight": "img_attn.norm.query_norm.scale",
    "attn.norm_k.weight": "img_attn.norm.key_norm.scale",
    "attn.norm_added_q.weight": "txt_attn.norm.query_norm.scale",
    "attn.norm_added_k.weight": "txt_attn.norm.key_norm.scale",
    "ff.linear_in": "img_mlp.0",
    "ff.linear_out": "img_mlp.2",
    "ff_context.linear_in": "txt_mlp.0",
    "ff_context.linear_out": "txt_mlp.2",
}
SINGLE = {
    "attn.to_qkv_mlp_proj": "linear1",
    "attn.to_out": "linear2",
    "attn.norm_q.weight": "norm.query_norm.scale",
    "attn.norm_k.weight": "norm.key_norm.scale",
}


def flux2_layout(keys: Iterable[str]) -> dict[str, Place]:
    """The native place of every Flux.2 transformer key that has one."""
    return placed(keys, _place)


def _place(key: str) -> Place | None:
    match = KEY.fullmatch(key)
    if match is None:
        native = rename(key, TOP)
        return None if native is None else Place(native, swapped=key.startswith("norm_out."))
    single, number, tail = match.groups()
    parent = f"{'single' if single else 'double'}_blocks.{number}"
    module, _, end = tail.rpartition(".")
    if not single:
        for fused, names in DOUBLE_FUSED.items():
            if module in names:
                return Place(f"{parent}.{fused}.{end}", names.index(module), len(names))
    native = rename(tail, SINGLE if single else DOUBLE)
    return None if native is None else Place(f"{parent}.{native}")
