"""Prompts as tensors: a batch of them, and each alone at its own length.

Some families bring every prompt to one length. In the others a prompt is as long as its text: it is kept at that length
and padded beside longer ones, with a mask of what is text, so that it means the same in every batch.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import pad
from torch.nn.utils.rnn import pad_sequence

# A dict of tensors with the batch first: `tokens` [batch, tokens, dim], `pooled` [batch, dim] where the family has one,
# and where prompts have their own lengths `mask` [batch, tokens], true for text and false for the padding after it.
Prompt = dict[str, Tensor]
MASK = "mask"
# What has a place for each token.
TOKENWISE = ("tokens", MASK)


def rows_of(prompt: Prompt) -> list[Prompt]:
    """Each prompt of a batch alone, without a batch dimension and without padding; views."""
    rows = [dict(zip(prompt, row, strict=True)) for row in zip(*prompt.values(), strict=True)]
    return [_cut(row) for row in rows] if MASK in prompt else rows


def batch_of(rows: Sequence[Prompt]) -> Prompt:
    """Prompts without a batch dimension as a batch, padded to the longest; the inverse of :func:`rows_of`."""
    ragged = TOKENWISE if MASK in rows[0] else ()
    return {
        name: pad_sequence([row[name] for row in rows], batch_first=True)
        if name in ragged
        else torch.stack([row[name] for row in rows])
        for name in rows[0]
    }


def same_length(*prompts: Prompt) -> list[Prompt]:
    """Batches of prompts, all padded to the longest of them."""
    if MASK not in prompts[0]:
        return list(prompts)
    length = max(prompt[MASK].shape[1] for prompt in prompts)
    return [
        {name: _padded(tensor, length) if name in TOKENWISE else tensor for name, tensor in prompt.items()}
        for prompt in prompts
    ]


def zeroed(prompt: Prompt) -> Prompt:
    """The same prompts with every embedding zero; as long as they were."""
    return {name: tensor if name == MASK else torch.zeros_like(tensor) for name, tensor in prompt.items()}


def expand(tensor: Tensor, like: Tensor) -> Tensor:
    """``tensor`` with a batch of 1 or of ``like``, as a batch of ``like`` on its device and in its dtype."""
    return tensor.to(like).expand(like.shape[0], *tensor.shape[1:])


def _cut(row: Prompt) -> Prompt:
    length = int(row[MASK].sum())
    return {name: tensor[:length] if name in TOKENWISE else tensor for name, tensor in row.items()}


def _padded(tensor: Tensor, length: int) -> Tensor:
    """[batch, tokens, ...] with zeros, or false, up to ``length``."""
    return pad(tensor, (0, 0) * (tensor.ndim - 2) + (0, length - tensor.shape[1]))
