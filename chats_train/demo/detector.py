"""Says what a picture of the small world shows, and whether that is what its prompt asks for.

Each cell is compared with every sprite in every colour and with the empty cell. The nearest is what the cell shows,
unless even that is far off: then it shows nothing that this world knows, and the picture is wrong whatever was asked
for.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import torch
from torch import Tensor

from .world import (
    BACKGROUND,
    CELL_PIXELS,
    CELLS,
    COLOURS,
    SHAPES,
    Scene,
    ScenePrompt,
    Thing,
    coloured,
    shows,
    sprites,
)

# Mean squared difference, on levels in [-1, 1], beyond which a cell is not recognised: halfway to the nearest wrong
# shape or so.
UNKNOWN_ERROR = 0.06
# Difference in that error which makes a content e times less likely.
ERROR_SCALE = 0.02

EMPTY = 0
THINGS: tuple[Thing, ...] = tuple(Thing(shape, colour) for shape in SHAPES for colour in COLOURS)


@cache
def _templates() -> tuple[Tensor, int]:
    """Every sprite in every colour as rows [things · variants, values of a cell], and the number of variants."""
    # In the order of THINGS.
    by_thing = [coloured(sprites(shape), colour).flatten(1) for shape in SHAPES for colour in COLOURS]
    return torch.cat(by_thing), by_thing[0].shape[0]


def _cells(pictures: Tensor) -> Tensor:
    """The cells of pictures [batch, 3, height, width] as rows, [batch · cells, values of a cell]."""
    cells = pictures.clamp(-1, 1).float().cpu().unfold(2, CELL_PIXELS, CELL_PIXELS).unfold(3, CELL_PIXELS, CELL_PIXELS)
    return cells.permute(0, 2, 3, 1, 4, 5).reshape(-1, 3 * CELL_PIXELS**2)


def nearest_variants(pictures: Tensor) -> Tensor:
    """Which variant of :func:`sprites` each cell of pictures [batch, 3, height, width] is nearest to, and -1 for the
    empty cell: [batch, cells]."""
    cells = _cells(pictures)
    templates, variants = _templates()
    distance, place = torch.cdist(cells, templates).min(-1)
    empty = (cells - BACKGROUND).square().sum(-1)
    return torch.where(empty > distance.square(), place % variants, -1).unflatten(0, (-1, len(CELLS)))


def log_likelihoods(pictures: Tensor) -> Tensor:
    """How likely each content of each cell is.

    Args:
        pictures: [batch, 3, height, width] in [-1, 1].

    Returns:
        log-probabilities, [batch, cells, 1 + things + 1]: the empty cell, ``THINGS``, and what is not recognised.
    """
    cells = _cells(pictures)
    templates, variants = _templates()
    values = cells.shape[-1]
    things = (torch.cdist(cells, templates).square() / values).unflatten(-1, (-1, variants)).amin(-1)
    empty = (cells - BACKGROUND).square().mean(-1, keepdim=True)
    errors = torch.cat([empty, things, torch.full_like(empty, UNKNOWN_ERROR)], dim=-1)
    return (-errors / ERROR_SCALE).log_softmax(-1).unflatten(0, (-1, len(CELLS)))


def read(likelihoods: Tensor) -> Scene | None:
    """The scene that one picture's likelihoods [cells, contents] make most likely, or None where a cell is not
    recognised."""
    contents = likelihoods.argmax(-1).tolist()
    if likelihoods.shape[-1] - 1 in contents:
        return None
    return {cell: THINGS[content - 1] for cell, content in zip(CELLS, contents, strict=True) if content != EMPTY}


def judge(pictures: Tensor, prompts: Sequence[ScenePrompt]) -> list[bool]:
    """Whether each picture [batch, 3, height, width] shows what its prompt asks for."""
    scenes = map(read, log_likelihoods(pictures))
    return [scene is not None and shows(scene, prompt) for scene, prompt in zip(scenes, prompts, strict=True)]
