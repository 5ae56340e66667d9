"""The UNet of SD1.5 and SDXL: diffusers' keys to the native (LDM) ones.

LDM numbers its blocks flat: `input_blocks.N` counts conv_in, then of each resolution the resnets and the downsampler;
`output_blocks.N` the resnets alone, an upsampler being the last entry of its block. Inside a block 0 is the resnet, 1
the attention.
Source of the names: the published checkpoints, and ComfyUI's `unet_to_diffusers` that reads them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from .places import Place, rename

TOP = {
    "conv_in": "input_blocks.0.0",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
    "mid_block.resnets.0": "middle_block.0",
    "mid_block.attentions.0": "middle_block.1",
    "mid_block.resnets.1": "middle_block.2",
}
RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
BLOCK = re.compile(r"(down|up)_blocks\.(\d+)\.(resnets|attentions|downsamplers|upsamplers)\.(\d+)\.(.+)")


def unet_layout(keys: Iterable[str]) -> dict[str, Place]:
    """The native key of every UNet key that has one."""
    keys = list(keys)
    resnets = {side: _resnets_per_block(keys, side) for side in ("down", "up")}
    attentive = {
        match.group(1) for match in (re.match(r"up_blocks\.(\d+)\.attentions\.", key) for key in keys) if match
    }
    places = {}
    for key in keys:
        match = BLOCK.fullmatch(key)
        native = _block_key(match, resnets[match.group(1)], attentive) if match else _top_key(key)
        if native is not None:
            places[key] = Place(native)
    return places


def _resnets_per_block(keys: list[str], side: str) -> list[int]:
    found = {
        tuple(map(int, m.groups()))
        for m in (re.match(rf"{side}_blocks\.(\d+)\.resnets\.(\d+)\.", key) for key in keys)
        if m
    }
    blocks = sorted({block for block, _ in found})
    return [sum(1 for block, _ in found if block == b) for b in blocks]


def _block_key(match: re.Match[str], resnets: list[int], attentive: set[str]) -> str | None:
    """The native key of something inside a down or up block."""
    side, block, kind, index, tail = (
        match.group(1),
        int(match.group(2)),
        match.group(3),
        int(match.group(4)),
        match.group(5),
    )
    if side == "down":
        # One entry for conv_in, one more per earlier block for its downsampler.
        first = 1 + sum(resnets[:block]) + block
        if kind == "downsamplers":
            return f"input_blocks.{first + resnets[block]}.0.op{tail.removeprefix('conv')}"
        parent = f"input_blocks.{first + index}"
    else:
        first = sum(resnets[:block])
        if kind == "upsamplers":
            return f"output_blocks.{first + resnets[block] - 1}.{2 if str(block) in attentive else 1}.{tail}"
        parent = f"output_blocks.{first + index}"
    if kind == "attentions":
        return f"{parent}.1.{tail}"
    renamed = rename(tail, RESNET)
    return renamed and f"{parent}.0.{renamed}"


def _top_key(key: str) -> str | None:
    native = rename(key, TOP)
    if native is None or not key.startswith("mid_block.resnets."):
        return native
    number, tail = key.removeprefix("mid_block.resnets.").split(".", 1)
    renamed = rename(tail, RESNET)
    return renamed and f"{TOP[f'mid_block.resnets.{number}']}.{renamed}"
