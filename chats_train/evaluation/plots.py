"""What an evaluation shows: a grid of pictures, and scores over α."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image, ImageOps

from chats.files import replacing

from ..sampling.pictures import picture_grid
from .drawing import Picture
from .prompts import EvaluationPrompt
from .report import Figures

# Of one picture in a grid, pixels; titles need about as much.
TILE_SIDE = 256
GRID_ROWS = 8


def grid_prompts(prompts: Sequence[EvaluationPrompt]) -> list[EvaluationPrompt]:
    """The prompts of a grid's rows: the groups take turns, so that each is seen."""
    by_group: dict[str, list[EvaluationPrompt]] = {}
    for prompt in prompts:
        by_group.setdefault(prompt.group, []).append(prompt)
    longest = max(map(len, by_group.values()))
    turns = [group[index] for index in range(longest) for group in by_group.values() if index < len(group)]
    return turns[:GRID_ROWS]


def draw_grid(pictures: Sequence[Picture], path: Path) -> list[str]:
    """Writes a grid: a row for each of some prompts (its first seed), a column for each condition.

    Returns:
        the rows' prompts.
    """
    rows = grid_prompts(list(dict.fromkeys(picture.prompt for picture in pictures)))
    conditions = list(dict.fromkeys(picture.condition for picture in pictures))
    first = min(picture.seed for picture in pictures)
    files = {(picture.prompt, picture.condition): picture.path for picture in pictures if picture.seed == first}
    tiles = [[_tile(files[prompt, condition]) for condition in conditions] for prompt in rows]
    # Pillow's own font has no Greek.
    grid = picture_grid(tiles, titles=[each.name.replace("α", "alpha") for each in conditions])
    with replacing(path) as temporary:
        grid.save(temporary, format="png")
    return [prompt.text for prompt in rows]


def draw_alpha_curve(figures: Sequence[Figures], path: Path) -> bool:
    """Writes each scorer's means of CHATS over α, a line for each form and guidance scale, with those of the methods
    that have no α.

    Returns:
        whether there was anything to draw: it takes two α.
    """
    from matplotlib.figure import Figure

    alphas = {each.condition.alpha for each in figures if each.condition.models == "pair"}
    if len(alphas) < 2:
        return False
    scorers = list(dict.fromkeys(each.scorer for each in figures))
    figure = Figure(figsize=(2 + 5 * len(scorers), 4), layout="constrained")
    for axes, scorer in zip(figure.subplots(1, len(scorers), squeeze=False)[0], scorers, strict=True):
        own = [each for each in figures if each.scorer == scorer]
        for number, scale in enumerate(dict.fromkeys(each.condition.guidance_scale for each in own)):
            _draw_scale(axes, [each for each in own if each.condition.guidance_scale == scale], f"C{number}")
        axes.set_title(scorer)
        axes.set_xlabel("α")
        axes.set_ylabel("mean, ± one standard error")
    # The same lines in every plot: one legend, beside them.
    figure.legend(*axes.get_legend_handles_labels(), loc="outside right upper", fontsize="small")
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png", dpi=100)
    return True


def _draw_scale(axes: Any, figures: Sequence[Figures], colour: str) -> None:
    """One guidance scale: horizontal lines of what has no α, and a curve for each form; α = 0 belongs to both."""
    scale = figures[0].condition.guidance_scale
    for models, style in (("base", ":"), ("preferred", "-."), ("base_negative", (0, (6, 1, 1, 1, 1, 1)))):
        for each in figures:
            if each.condition.models == models:
                axes.axhline(each.mean.mean, color=colour, linestyle=style, label=each.condition.name)
    for form, style, marker in (("proxy", "-", "o"), ("exact", "--", "s")):
        curve = [
            each
            for each in figures
            if each.condition.models == "pair" and (each.condition.form == form or each.condition.alpha == 0)
        ]
        if not any(each.condition.form == form and each.condition.alpha != 0 for each in curve):
            continue
        curve.sort(key=lambda each: each.condition.alpha or 0.0)
        axes.errorbar(
            [each.condition.alpha for each in curve],
            [each.mean.mean for each in curve],
            yerr=[each.mean.standard_error for each in curve],
            color=colour,
            linestyle=style,
            marker=marker,
            capsize=3,
            label=f"CHATS {form}, s={scale:g}",
        )


def _tile(path: Path) -> Image.Image:
    with Image.open(path) as picture:
        return ImageOps.fit(picture.convert("RGB"), (TILE_SIDE, TILE_SIDE))
