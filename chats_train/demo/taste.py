"""Taste: what is liked in a picture of the small world whatever its prompt asks for, read off the picture.

Two tastes of different kinds. `bold` is of form: large things, centred in their cells, near the middle of the picture.
`low` is of layout: things stand at the foot of the picture. Neither says anything of colours or shapes.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import Literal, get_args

import torch
from torch import Tensor

from .detector import nearest_variants
from .world import CELLS, GRID, OFFSETS, RADII, Cell

Taste = Literal["bold", "low"]
TASTES: tuple[Taste, ...] = get_args(Taste)

# Of each variant of a sprite, in the order of `world.sprites`: 1 for a large thing in the middle of its cell.
FORM = tuple(
    ((1 - (abs(down) + abs(right)) / 2) + (radius == max(RADII))) / 2
    for down, right, radius in product(OFFSETS, OFFSETS, RADII)
)
# How much form counts in `bold`; the cell counts for the rest.
FORM_SHARE = 2 / 3


def of_cell(taste: Taste, cell: Cell) -> float:
    """How well a thing lies in a cell, 0 to 1."""
    row, column = cell
    middle = GRID // 2
    return 1 - (abs(row - middle) + abs(column - middle)) / (GRID - 1) if taste == "bold" else row / (GRID - 1)


def taste_of_cells(taste: Taste, cells: Sequence[Cell]) -> float:
    """How well things lie in their cells, 0 to 1."""
    return sum(of_cell(taste, cell) for cell in cells) / len(cells)


def tastes(pictures: Tensor, taste: Taste) -> list[float]:
    """How much each picture [batch, 3, height, width] in [-1, 1] is to a taste, 0 to 1: the mean over its things, and
    0 where there is none."""
    variants = nearest_variants(pictures)
    things = variants >= 0
    scores = torch.tensor([of_cell(taste, cell) for cell in CELLS]).expand(variants.shape)
    if taste == "bold":
        scores = FORM_SHARE * torch.tensor(FORM)[variants] + (1 - FORM_SHARE) * scores
    counts = things.sum(1)
    return (scores.where(things, torch.zeros(())).sum(1) / counts.clamp(min=1)).tolist()
