"""The demo's picture: what the base draws of some prompts on the left, what the trained pair draws of them on the
right, and where things stand in all the pictures that were counted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFont

from ..sampling.pictures import enlarged, to_images
from .detector import nearest_variants
from .measure import Count
from .world import GRID, ScenePrompt

COLUMNS = 4
# Pixels: of a tile and its frame, between tiles, between the two halves, and of the strip beside each half.
SIDE, FRAME, GAP, MIDDLE, STRIP = 144, 4, 12, 56, 64
HEADING, TEXT, SMALL = 26, 18, 15
TILE = SIDE + 2 * FRAME
RIGHT_COLOUR, WRONG_COLOUR, STRIP_COLOUR = "#2e9e44", "#c8c8c8", (40, 90, 170)


@dataclass(frozen=True)
class Half:
    """One side of the picture: its heading, the line under it, and what was counted."""

    heading: str
    line: str
    count: Count


def before_and_after(
    halves: tuple[Half, Half], prompts: Sequence[ScenePrompt], shown: Sequence[int], title: str
) -> Image.Image:
    """The sheet.

    Args:
        prompts: of the counts' pictures.
        shown: which of them to show, in this order.
    """
    rows = -(-len(shown) // COLUMNS)
    top, half = _top(), COLUMNS * (TILE + GAP) + STRIP
    height = top + rows * _row() + SMALL + 2 * GAP
    sheet = Image.new("RGB", (2 * half + MIDDLE + 2 * GAP, height), "white")
    pen = ImageDraw.Draw(sheet)
    pen.text((GAP, GAP), title, fill="black", font=_font(TEXT))
    for number, each in enumerate(halves):
        _draw_half(sheet, GAP + number * (half + MIDDLE), each, prompts, shown)
    legend = (
        "green frame: the picture shows what its prompt asks for · blue strip: in which row things stand, of all "
        f"{len(prompts)} counted pictures"
    )
    pen.text((GAP, height - SMALL - GAP), legend, fill="#555555", font=_font(SMALL))
    return sheet


def shares_by_row(count: Count) -> list[float]:
    """Of all things in the pictures, the share in each row of cells, from the top; all 0 where there are none."""
    things = (nearest_variants(count.pictures) >= 0).unflatten(1, (GRID, GRID)).sum((0, 2))
    return (things / things.sum().clamp(min=1)).tolist()


def _draw_half(sheet: Image.Image, left: int, half: Half, prompts: Sequence[ScenePrompt], shown: Sequence[int]) -> None:
    pen = ImageDraw.Draw(sheet)
    y = 2 * GAP + TEXT + GAP // 2
    pen.text((left, y), half.heading, fill="black", font=_font(HEADING))
    pen.text((left, y + HEADING + GAP // 2), half.line, fill="black", font=_font(TEXT))
    images = to_images(half.count.pictures)
    right = list(half.count.right.values())
    for place, number in enumerate(shown):
        x, y = left + place % COLUMNS * (TILE + GAP), _top() + place // COLUMNS * _row()
        pen.rectangle((x, y, x + TILE - 1, y + TILE - 1), fill=RIGHT_COLOUR if right[number] else WRONG_COLOUR)
        sheet.paste(enlarged(images[number], SIDE), (x + FRAME, y + FRAME))
        pen.text((x, y + TILE + 2), _broken(prompts[number].text), fill="#333333", font=_font(SMALL), spacing=1)
    rows = -(-len(shown) // COLUMNS)
    _draw_strip(pen, left + COLUMNS * (TILE + GAP), rows * _row() - 2 * SMALL - GAP, shares_by_row(half.count))


def _draw_strip(pen: ImageDraw.ImageDraw, left: int, height: int, shares: Sequence[float]) -> None:
    """The rows of a picture one above the other, the darker the more things stand there."""
    part = height // len(shares)
    for row, share in enumerate(shares):
        y = _top() + row * part
        colour = tuple(round(255 + share * (level - 255)) for level in STRIP_COLOUR)
        pen.rectangle((left, y, left + STRIP - 1, y + part - 3), fill=colour)
        middle = (left + STRIP // 2, y + part // 2)
        pen.text(
            middle, f"{100 * share:.0f} %", fill="white" if share > 0.5 else "black", font=_font(TEXT), anchor="mm"
        )


def _broken(text: str) -> str:
    """A prompt in two lines, so that it fits under its picture."""
    for word in (" and ", " left of ", " right of ", " above ", " below "):
        if word in text:
            first, second = text.split(word)
            return f"{first}\n{word.strip()} {second}"
    return text


def _top() -> int:
    """Where pictures begin, below title, heading and line."""
    return 4 * GAP + 2 * TEXT + HEADING


def _row() -> int:
    """The height of a picture with its prompt."""
    return TILE + 2 * (SMALL + 2) + GAP


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size=size)
