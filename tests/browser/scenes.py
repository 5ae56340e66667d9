"""Pictures for screenshots, drawn by code: hills, a sun or moon and its light on the water, other ones for each
seed."""

from __future__ import annotations

import colorsys
import io

import numpy as np
from PIL import Image, ImageFilter

PROMPTS = (
    "layered hills behind a calm lake at dusk, a low sun and its reflection on the water, soft haze, muted colours",
    "a full moon above dark mountains, still water, cold light",
    "sunrise over a misty valley, warm colours",
    "a quiet bay in the evening",
)
HILLS = 4


def ridge(generator: np.random.Generator, width: int, roughness: float) -> np.ndarray:
    """The height of a line of hills at each column, [width] of about -1 to 1: waves that halve as they shorten."""
    columns = np.linspace(0, 1, width)
    waves = [
        np.sin(2 * np.pi * (columns * 2**octave * generator.uniform(0.6, 1.2) + generator.uniform()))
        * roughness**octave
        for octave in range(7)
    ]
    return np.sum(waves, axis=0) / 2


def colour(hue: float, saturation: float, value: float) -> np.ndarray:
    return np.array(colorsys.hsv_to_rgb(hue % 1, saturation, value))


def scene(seed: int, width: int = 1024, height: int = 1024) -> Image.Image:
    generator = np.random.default_rng(seed)
    # From blue to violet above, from red to yellow below.
    hue, glow, horizon = generator.uniform(0.52, 0.82), generator.uniform(-0.06, 0.13), generator.uniform(0.55, 0.7)
    rows, columns = np.mgrid[0:height, 0:width] / (height, width)[0]
    columns = columns * height / width
    high, low = colour(hue, 0.55, 0.45), colour(glow, 0.42, 0.98)
    picture = high + (low - high) * np.clip(rows / horizon, 0, 1)[..., None] ** 1.4
    centre = generator.uniform(0.2, 0.8), horizon - generator.uniform(0.18, 0.4)
    distance = np.hypot((columns - centre[0]) * width / height, rows - centre[1])
    radius = generator.uniform(0.04, 0.09)
    light = np.clip((radius - distance) * height / 2, 0, 1) + 0.5 * np.exp(-((distance / (radius * 3)) ** 2))
    picture += (colour(glow + 0.03, 0.12, 1.0) - picture) * np.clip(light, 0, 1)[..., None]
    for number in range(HILLS):
        depth = (number + 1) / HILLS
        top = horizon - 0.2 * (1 - depth) - 0.07 * ridge(generator, width, 0.52) * (1.3 - depth / 2)
        inside = np.clip((rows - top) * height / 1.5, 0, 1)[..., None]
        picture += (low * (1 - depth) * 0.85 + colour(hue, 0.5, 0.16) * depth - picture) * inside
    return Image.fromarray((with_water(picture, horizon, generator) * 255).round().clip(0, 255).astype(np.uint8))


def with_water(picture: np.ndarray, horizon: float, generator: np.random.Generator) -> np.ndarray:
    """The picture with its lower part as a mirror of the upper, darker and broken by waves."""
    height, width = picture.shape[:2]
    shore = int((horizon + 0.05) * height)
    below = np.arange(shore, height)
    waves = generator.normal(size=(len(below), 1)) * np.linspace(1, 9, len(below))[:, None]
    source = np.clip(shore - (below - shore) * 1.6, 0, shore - 1).astype(int)
    shifted = (np.arange(width)[None] + waves.astype(int)) % width
    mirror = picture[source[:, None], shifted] * np.linspace(0.82, 0.55, len(below))[:, None, None]
    picture[shore:] = mirror
    return picture


def png(seed: int, width: int = 1024, height: int = 1024) -> bytes:
    stream = io.BytesIO()
    scene(seed, width, height).filter(ImageFilter.GaussianBlur(0.6)).save(stream, "PNG", compress_level=1)
    return stream.getvalue()
