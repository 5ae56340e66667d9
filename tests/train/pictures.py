"""Small pictures for tests."""

import io

import numpy
from PIL import Image


def picture(seed: int, width: int = 48, height: int = 32) -> Image.Image:
    """A picture of noise, the same for the same seed."""
    values = numpy.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=numpy.uint8)
    return Image.fromarray(values)


def encoded(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def png(seed: int, width: int = 48, height: int = 32) -> bytes:
    return encoded(picture(seed, width, height))


def write_folders(folder, names=("a", "b"), size=(48, 32)):
    """chosen/ and rejected/ with captions."""
    for number, name in enumerate(names):
        for side, offset in (("chosen", 0), ("rejected", 100)):
            (folder / side).mkdir(parents=True, exist_ok=True)
            (folder / side / f"{name}.png").write_bytes(png(number + offset, *size))
        (folder / "chosen" / f"{name}.txt").write_text(f"prompt {name}\n", encoding="utf-8")
    return folder
