"""A small world of pictures: coloured shapes on a 3 × 3 grid, and prompts of GenEval's six categories (arXiv
2310.11513).

A prompt asks for things; a scene says which thing lies in which cell; a picture is a scene drawn. A scene is right for
a prompt when it holds exactly what is asked for, and nothing else.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import permutations, product
from typing import Literal

import torch
from torch import Tensor

GRID = 3
CELL_PIXELS = 16
RESOLUTION = GRID * CELL_PIXELS

Category = Literal["single object", "two objects", "counting", "colours", "position", "colour attribution"]
Relation = Literal["left of", "right of", "above", "below"]
CATEGORIES: tuple[Category, ...] = (
    "single object",
    "two objects",
    "counting",
    "colours",
    "position",
    "colour attribution",
)
RELATIONS: tuple[Relation, ...] = ("left of", "right of", "above", "below")
PLURALS = {"circle": "circles", "square": "squares", "triangle": "triangles", "cross": "crosses", "ring": "rings"}
SHAPES = tuple(PLURALS)
NUMBERS = {2: "two", 3: "three", 4: "four"}
# Levels of red, green and blue in [-1, 1].
COLOURS = {
    "red": (0.8, -0.8, -0.8),
    "green": (-0.8, 0.3, -0.6),
    "blue": (-0.8, -0.5, 0.9),
    "yellow": (0.9, 0.6, -0.9),
    "purple": (0.2, -0.9, 0.5),
    "cyan": (-0.7, 0.6, 0.8),
}
BACKGROUND = 0.9
# How the sprites of one shape differ: offset of the centre and radius, in pixels.
OFFSETS = (-1.0, 0.0, 1.0)
RADII = (5.5, 6.5)

# (row, column), from the top left.
Cell = tuple[int, int]
CELLS: tuple[Cell, ...] = tuple(product(range(GRID), range(GRID)))


@dataclass(frozen=True)
class Thing:
    """A shape and its colour; in a prompt the colour may be left open (None)."""

    shape: str
    colour: str | None = None

    def __str__(self) -> str:
        return f"{self.colour} {self.shape}" if self.colour else self.shape


Scene = dict[Cell, Thing]


@dataclass(frozen=True)
class ScenePrompt:
    """A prompt and what it asks for: ``things``, the first in ``relation`` to the second where there is one."""

    text: str
    category: Category
    things: tuple[Thing, ...]
    relation: Relation | None = None


@cache
def all_prompts() -> tuple[ScenePrompt, ...]:
    """Every prompt of the world, in a fixed order."""
    found = [ScenePrompt(f"a {shape}", "single object", (Thing(shape),)) for shape in SHAPES]
    couples = list(permutations(SHAPES, 2))
    found += [ScenePrompt(f"a {a} and a {b}", "two objects", (Thing(a), Thing(b))) for a, b in couples]
    found += [
        ScenePrompt(f"{NUMBERS[n]} {PLURALS[shape]}", "counting", (Thing(shape),) * n)
        for n, shape in product(NUMBERS, SHAPES)
    ]
    found += [ScenePrompt(f"a {c} {shape}", "colours", (Thing(shape, c),)) for c, shape in product(COLOURS, SHAPES)]
    for relation, (a, b) in product(RELATIONS, couples):
        found.append(ScenePrompt(f"a {a} {relation} a {b}", "position", (Thing(a), Thing(b)), relation))
    for (a, b), (c, d) in product(couples, permutations(COLOURS, 2)):
        found.append(ScenePrompt(f"a {c} {a} and a {d} {b}", "colour attribution", (Thing(a, c), Thing(b, d))))
    return tuple(found)


# How many texts of each category, in the order of CATEGORIES, are held out to choose settings on (dev), and how many to
# measure on (test): 96 and 240. Pairs are made for the rest.
DEV_TEXTS = (1, 4, 3, 6, 16, 66)
TEST_TEXTS = (2, 10, 7, 15, 40, 166)


@dataclass(frozen=True)
class PromptSets:
    """Prompts to make preference pairs for, to choose settings on, and to measure on. No text is there twice."""

    pairs: tuple[ScenePrompt, ...]
    dev: tuple[ScenePrompt, ...]
    test: tuple[ScenePrompt, ...]


@cache
def prompt_sets() -> PromptSets:
    """Always the same sets. Every order within a category is a shuffled one, so that any first texts are a sample."""
    pairs, dev, test = [], [], []
    for category, for_dev, for_test in zip(CATEGORIES, DEV_TEXTS, TEST_TEXTS, strict=True):
        prompts = [prompt for prompt in all_prompts() if prompt.category == category]
        random.Random(0).shuffle(prompts)
        dev += prompts[:for_dev]
        test += prompts[for_dev : for_dev + for_test]
        pairs += prompts[for_dev + for_test :]
    return PromptSets(tuple(pairs), tuple(dev), tuple(test))


def balanced_prompts(prompts: Sequence[ScenePrompt], count: int, seed: int) -> list[ScenePrompt]:
    """``count`` of the prompts, each category as often as any other; where a category has too few, they come again."""
    rng = random.Random(seed)
    by_category = [[prompt for prompt in prompts if prompt.category == category] for category in CATEGORIES]
    for group in by_category:
        rng.shuffle(group)
    rounds = range(-(-count // len(CATEGORIES)))
    return [group[index % len(group)] for index in rounds for group in by_category][:count]


def related(first: Cell, second: Cell, relation: Relation | None) -> bool:
    """Whether the first cell lies so to the second; of a diagonal, the longer side counts, and of an even one
    neither."""
    if relation is None:
        return first != second
    down, right = first[0] - second[0], first[1] - second[1]
    along, across = (right, down) if relation in ("left of", "right of") else (down, right)
    return abs(along) > abs(across) and (along < 0) == (relation in ("left of", "above"))


def shows(scene: Scene, prompt: ScenePrompt) -> bool:
    """Whether a scene is exactly what a prompt asks for."""
    if len(scene) != len(prompt.things):
        return False
    return any(
        all(_is(scene[cell], thing) for cell, thing in zip(cells, prompt.things, strict=True))
        and (prompt.relation is None or related(cells[0], cells[1], prompt.relation))
        for cells in permutations(scene)
    )


def _is(thing: Thing, wanted: Thing) -> bool:
    return thing.shape == wanted.shape and wanted.colour in (None, thing.colour)


def random_scene(prompt: ScenePrompt, rng: random.Random) -> Scene:
    """A scene that shows a prompt. Colours that it leaves open are drawn: one for all things of a count, else one for
    each."""
    while True:
        cells = rng.sample(CELLS, len(prompt.things))
        if prompt.relation is None or related(cells[0], cells[1], prompt.relation):
            break
    shared = rng.choice(list(COLOURS))
    scene = {}
    for cell, thing in zip(cells, prompt.things, strict=True):
        free = shared if prompt.category == "counting" else rng.choice(list(COLOURS))
        scene[cell] = Thing(thing.shape, thing.colour or free)
    return scene


def draw(scene: Scene, rng: random.Random, weights: Sequence[float] | None = None) -> Tensor:
    """The picture of a scene, [3, height, width] in [-1, 1]; offsets and radii are drawn, each variant of
    :func:`sprites` as often as any other, or by its weight."""
    picture = torch.full((3, RESOLUTION, RESOLUTION), BACKGROUND)
    for (row, column), thing in scene.items():
        top, left = row * CELL_PIXELS, column * CELL_PIXELS
        assert thing.colour is not None, "a scene leaves no colour open"
        alphas = sprites(thing.shape)
        variant = rng.randrange(len(alphas)) if weights is None else rng.choices(range(len(alphas)), weights)[0]
        picture[:, top : top + CELL_PIXELS, left : left + CELL_PIXELS] = coloured(alphas[variant], thing.colour)
    return picture


def coloured(alpha: Tensor, colour: str) -> Tensor:
    """A sprite [..., height, width] in a colour on the background, [..., 3, height, width]."""
    levels = torch.tensor(COLOURS[colour])[:, None, None]
    return BACKGROUND + alpha.unsqueeze(-3) * (levels - BACKGROUND)


@cache
def sprites(shape: str) -> Tensor:
    """A shape in all its variants, [variants, height, width] of one cell: how much of each pixel it covers, 0 to 1."""
    axis = torch.arange(CELL_PIXELS) - (CELL_PIXELS - 1) / 2
    variants = []
    for down, right, radius in product(OFFSETS, OFFSETS, RADII):
        y, x = torch.meshgrid(axis - down, axis - right, indexing="ij")
        variants.append((0.5 - _distance(shape, x, y, radius)).clamp(0, 1))
    return torch.stack(variants)


def _distance(shape: str, x: Tensor, y: Tensor, radius: float) -> Tensor:
    """About the signed distance in pixels from a shape's edge, negative inside."""
    r, x = radius, x.abs()
    if shape == "circle":
        return torch.hypot(x, y) - r
    if shape == "square":
        return torch.maximum(x, y.abs()) - 0.85 * r
    if shape == "triangle":
        # Tip at (0, -r), base at y = 0.8 r from -r to r.
        return torch.maximum(y - 0.8 * r, (1.8 * x - y - r) / 2.06)
    if shape == "cross":
        width = 0.36 * r
        return torch.minimum(torch.maximum(x - r, y.abs() - width), torch.maximum(x - width, y.abs() - r))
    if shape == "ring":
        return (torch.hypot(x, y) - 0.75 * r).abs() - 0.25 * r
    raise ValueError(f"`{shape}` is no shape of this world; known are {', '.join(SHAPES)}")
