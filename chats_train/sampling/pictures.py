"""Pixels as pictures: one by one, enlarged, and many on one sheet."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw
from torch import Tensor

TITLE_HEIGHT = 16


def to_images(pixels: Tensor) -> list[Image.Image]:
    """Pictures for pixels [batch, 3, height, width] in [-1, 1]; what is outside is clipped."""
    levels = ((pixels.float().clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 1).cpu().numpy()
    return [Image.fromarray(np.ascontiguousarray(level)) for level in levels]


def enlarged(picture: Image.Image, least_side: int) -> Image.Image:
    """The picture, a smaller one by the whole factor that first brings its shorter side to ``least_side`` pixels;
    nothing is smoothed."""
    factor = -(-least_side // min(picture.size))
    return (
        picture.resize((picture.width * factor, picture.height * factor), Image.Resampling.NEAREST)
        if factor > 1
        else picture
    )


def picture_grid(rows: Sequence[Sequence[Image.Image]], titles: Sequence[str] = ()) -> Image.Image:
    """Rows of pictures of one size as one picture, with a title above each column.

    Raises:
        ValueError: for rows of different lengths, pictures of different sizes, or a title too many or too few.
    """
    columns, (width, height) = len(rows[0]), rows[0][0].size
    if any(len(row) != columns or picture.size != (width, height) for row in rows for picture in row):
        raise ValueError("a picture grid needs rows of equal length and pictures of equal size")
    if titles and len(titles) != columns:
        raise ValueError(f"{len(titles)} titles for {columns} columns; give one per column, or none")
    top = TITLE_HEIGHT if titles else 0
    grid = Image.new("RGB", (columns * width, top + len(rows) * height), "white")
    for column, title in enumerate(titles):
        ImageDraw.Draw(grid).text((column * width + 2, 2), title, fill="black")
    for y, row in enumerate(rows):
        for x, picture in enumerate(row):
            grid.paste(picture, (x * width, top + y * height))
    return grid
