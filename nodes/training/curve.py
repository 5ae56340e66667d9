"""The picture of a run: its loss, step by step, and what the held-out pairs say of it."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from PIL.Image import Image
    from PIL.ImageDraw import ImageDraw

WIDTH, HEIGHT, MARGIN = 768, 512, 64
# Of the letters: a node shows the picture at less than half its size.
FONT_SIZE = 24
LOSS, SMOOTHED, ACCURACY, INK, GRID = "#b9c6d8", "#2f5f9e", "#c2571a", "#303030", "#dddddd"
HELD_OUT = "held_out."
# log 2, the loss of two members that equal the reference: where a run begins.
FIRST_LOSS = math.log(2)

Row = dict[str, float]


@dataclass(frozen=True)
class Measure:
    """What the held-out pairs say, from 0 to 1: of a row, None where it was not measured.

    Attributes:
        of: gives it.
        name: on the curve.
        words: the node's line on a row.
        first_loss: the least that the curve's left axis reaches.
    """

    of: Callable[[Row], float | None]
    name: str
    words: Callable[[Row], str]
    first_loss: float

    def line(self, history: list[Row]) -> str:
        """The end of a text on the node, where something was measured."""
        measured = [row for row in history if self.of(row) is not None]
        # Nodes 2.0 shows the line break as a blank.
        return f",\n{self.words(measured[-1])}" if measured else ""


def _told_right(row: Row) -> str:
    rights, of = row[ACCURACY_KEY], row[HELD_OUT + "pairs"]
    return f"held-out told right: {rights * of:.0f} of {of:.0f}"


ACCURACY_KEY = HELD_OUT + "implicit_accuracy"
TOLD_RIGHT = Measure(lambda row: row.get(ACCURACY_KEY), "held-out pairs told right", _told_right, FIRST_LOSS)


def draw_curve(history: list[Row], steps: int, measure: Measure = TOLD_RIGHT) -> Image:
    """Loss on the left axis, from 0; what was measured on the right one, from 0 to 1; steps below."""
    from PIL import Image, ImageDraw, ImageFont

    picture = Image.new("RGB", (WIDTH, HEIGHT), "white")
    draw, font = ImageDraw.Draw(picture), ImageFont.load_default(FONT_SIZE)
    losses = [row["loss"] for row in history]
    highest = 1.1 * (max([measure.first_loss, *losses]) or 1.0)
    digits = max(2, 1 - math.floor(math.log10(highest)))
    for share in (0, 0.25, 0.5, 0.75, 1):
        y = _place(0, share)[1]
        draw.line([(MARGIN, y), (WIDTH - MARGIN, y)], fill=GRID)
        draw.text((MARGIN - 6, y), f"{share * highest:.{digits}f}", fill=SMOOTHED, font=font, anchor="rm")
        draw.text((WIDTH - MARGIN + 6, y), f"{share:.2f}", fill=ACCURACY, font=font, anchor="lm")
    _line(draw, [(index + 1, loss) for index, loss in enumerate(losses)], steps, highest, LOSS, 1)
    _line(draw, [(index + 1, loss) for index, loss in enumerate(_smoothed(losses))], steps, highest, SMOOTHED, 4)
    found = ((index + 1, measure.of(row)) for index, row in enumerate(history))
    measured = [(step, value) for step, value in found if value is not None]
    _line(draw, measured, steps, 1.0, ACCURACY, 4)
    for step, value in measured:
        x, y = _place(step / steps, value)
        draw.ellipse([x - 6, y - 6, x + 6, y + 6], fill=ACCURACY)
    below, above = HEIGHT - MARGIN + 14, MARGIN - 20
    draw.text((MARGIN, below), "0", fill=INK, font=font, anchor="lt")
    draw.text((WIDTH - MARGIN, below), f"{steps} steps", fill=INK, font=font, anchor="rt")
    draw.text((MARGIN, above), f"loss (step {len(history)})", fill=SMOOTHED, font=font, anchor="lb")
    draw.text((WIDTH - MARGIN, above), measure.name, fill=ACCURACY, font=font, anchor="rb")
    return picture


def beside(curve: Image, preview: Image) -> Image:
    """Both, the preview as high as the curve."""
    from PIL import Image

    width = max(1, round(preview.width * HEIGHT / preview.height))
    both = Image.new("RGB", (WIDTH + width, HEIGHT), "white")
    both.paste(curve, (0, 0))
    both.paste(preview.resize((width, HEIGHT)), (WIDTH, 0))
    return both


def as_image(picture: Image) -> Tensor:
    """As ComfyUI has pictures: [1, height, width, 3] from 0 to 1."""
    levels = torch.frombuffer(bytearray(picture.tobytes()), dtype=torch.uint8)
    return levels.reshape(1, picture.height, picture.width, 3).float() / 255


def _line(draw: ImageDraw, points: list[tuple[int, float]], steps: int, highest: float, color: str, width: int) -> None:
    draw.line([_place(step / steps, value / highest) for step, value in points], fill=color, width=width)


def _place(across: float, up: float) -> tuple[float, float]:
    return (
        MARGIN + min(1.0, across) * (WIDTH - 2 * MARGIN),
        HEIGHT - MARGIN - min(1.0, max(0.0, up)) * (HEIGHT - 2 * MARGIN),
    )


def _smoothed(losses: list[float]) -> list[float]:
    """Moving averages, over about a twentieth of the steps."""
    share = 2 / (1 + max(1, len(losses) // 20))
    smooth = losses[:1]
    for loss in losses[1:]:
        smooth.append(smooth[-1] + share * (loss - smooth[-1]))
    return smooth
