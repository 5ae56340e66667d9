"""The parts of the demo's base before training: an SD1.5 pipeline in every respect but size, with a tokenizer of its
own."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

from .world import CELL_PIXELS, GRID, RESOLUTION, all_prompts

if TYPE_CHECKING:
    from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
    from transformers import CLIPTextModel, CLIPTokenizer

LETTERS = "abcdefghijklmnopqrstuvwxyz"
END_OF_WORD = "</w>"
START, END = "<|startoftext|>", "<|endoftext|>"
# Start, the longest prompt's eight words ("a red circle and a blue square" has seven), end, and some room.
MAX_TOKENS = 12
TEXT_WIDTH = 64
LATENT_CHANNELS = 4
VAE_CHANNELS = (8, 16, 32, 64)
UNET_CHANNELS = (64, 112)


def words() -> list[str]:
    """Every word of the world's prompts, sorted."""
    return sorted({word for prompt in all_prompts() for word in prompt.text.split()})


def save_tokenizer(folder: Path) -> CLIPTokenizer:
    """Writes CLIP's two files over the letters and the world's words, each word one token, and opens them."""
    from transformers import CLIPTokenizer

    merges = _merges()
    tokens = [*LETTERS, *(letter + END_OF_WORD for letter in LETTERS), *map("".join, merges), START, END]
    vocabulary = {token: index for index, token in enumerate(dict.fromkeys(tokens))}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps(vocabulary), encoding="utf-8")
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *map(" ".join, merges), ""]), encoding="utf-8")
    settings = {"tokenizer_class": "CLIPTokenizer", "model_max_length": MAX_TOKENS, "bos_token": START}
    settings |= {"eos_token": END, "unk_token": END, "pad_token": END}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2), encoding="utf-8")
    return CLIPTokenizer.from_pretrained(folder, local_files_only=True)


def _merges() -> list[tuple[str, str]]:
    """Byte-pair merges, first ones first, that make each word one token."""
    merges: dict[tuple[str, str], None] = {}
    for word in words():
        pieces = [*word[:-1], word[-1] + END_OF_WORD]
        # What earlier words brought comes first, in its order. What this word adds ranks below, and so leaves those
        # words whole.
        while pair := next((pair for pair in merges if pair in pairwise(pieces)), None):
            pieces = _merged(pieces, pair)
        while len(pieces) > 1:
            merges[pieces[0], pieces[1]] = None
            pieces = _merged(pieces, (pieces[0], pieces[1]))
    return list(merges)


def _merged(pieces: list[str], pair: tuple[str, str]) -> list[str]:
    """A word's pieces with the pair made one wherever it stands."""
    merged: list[str] = []
    for piece in pieces:
        if merged and (merged[-1], piece) == pair:
            merged[-1] += piece
        else:
            merged.append(piece)
    return merged


def make_text_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    """Words and positions start out far larger than what the layers add.

    CLIP starts them at a deviation of 0.02. In a net this small each position then is little but a mean over the words
    before it, and the denoiser takes long to find out that its prompt says anything.
    """
    from torch import nn
    from transformers import CLIPTextConfig, CLIPTextModel

    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=TEXT_WIDTH,
        intermediate_size=2 * TEXT_WIDTH,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=MAX_TOKENS,
        projection_dim=TEXT_WIDTH,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    encoder = CLIPTextModel(config)
    for name, deviation in (("token_embedding", 1.0), ("position_embedding", 0.5)):
        (weight,) = (value for key, value in encoder.named_parameters() if key.endswith(f"{name}.weight"))
        nn.init.normal_(weight, std=deviation)
    return encoder


def make_vae() -> AutoencoderKL:
    """Eight pixels a latent; a cell of the grid is 2 × 2 latents."""
    from diffusers import AutoencoderKL

    blocks = len(VAE_CHANNELS)
    return AutoencoderKL(
        down_block_types=["DownEncoderBlock2D"] * blocks,
        up_block_types=["UpDecoderBlock2D"] * blocks,
        block_out_channels=VAE_CHANNELS,
        layers_per_block=1,
        norm_num_groups=8,
        latent_channels=LATENT_CHANNELS,
        sample_size=RESOLUTION,
    )


def make_unet() -> UNet2DConditionModel:
    """Attention at half the latents' resolution only, where one position is one cell of the grid."""
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel(
        sample_size=GRID * CELL_PIXELS // 2 ** (len(VAE_CHANNELS) - 1),
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        block_out_channels=UNET_CHANNELS,
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=TEXT_WIDTH,
        attention_head_dim=4,
        norm_num_groups=16,
    )


def make_scheduler() -> DDIMScheduler:
    from diffusers import DDIMScheduler

    return DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    )
