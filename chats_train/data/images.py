"""Encoded images to pixels, with Pillow."""

from __future__ import annotations

import functools
import io
import math
import numbers
import struct
import zlib
from typing import TYPE_CHECKING, NamedTuple

import numpy
from PIL import Image, ImageOps, UnidentifiedImageError

from chats.buckets import Bucket, place

from .pairs import ProblemKind

if TYPE_CHECKING:
    import torch

# What Pillow identifies, but hands to another program (Ghostscript for EPS) or cannot show: documents, films,
# measurements.
NO_PICTURES = frozenset({"BUFR", "EPS", "GRIB", "HDF5", "MPEG", "PDF", "WMF"})
# Several pictures in one file, of which the first is what every viewer shows: a phone's JPEG with its depth map, and
# Photoshop's layers, before which Pillow gives the whole.
WITH_A_FIRST_PICTURE = frozenset({"MPO", "PSD"})
# Formats whose whole levels span 16 bits, also where Pillow calls them "I": PNG (in Pillow 10), PGM and JPEG 2000
# (brought to 16 bits by Pillow). TIFF states its bits.
WHOLE_SIXTEEN_BITS = frozenset({"PNG", "PPM", "JPEG2000"})
SIXTEEN_BITS = 65535
# TIFF's tags, and two of their values.
BITS_PER_SAMPLE, PHOTOMETRIC, SMALLEST_LEVEL, LARGEST_LEVEL = 258, 262, 340, 341
WHITE_IS_ZERO = 0

# All that Pillow's decoders raise for bytes that are no whole image.
DECODE_ERRORS = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    IndexError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)


class UnusableImage(OSError):
    """Bytes that are no picture as their owner sees it; the message says why."""

    def __init__(self, kind: ProblemKind, reason: str):
        super().__init__(reason)
        self.kind = kind


class Decoded(NamedTuple):
    """A whole image as RGB; ``by_range`` where its gray levels had more than 8 bits and were brought to 8."""

    image: Image.Image
    by_range: bool


@functools.cache
def picture_formats() -> tuple[str, ...]:
    """Pillow's names of the formats that it reads as pictures."""
    Image.init()
    return tuple(name for name in Image.OPEN if name not in NO_PICTURES)


@functools.cache
def picture_suffixes() -> frozenset[str]:
    """Ends of names of pictures, in lower case and with their dot."""
    # An MPO is read as the JPEG that it begins with.
    formats = {*picture_formats(), "MPO"}
    return frozenset(suffix for suffix, name in Image.registered_extensions().items() if name in formats)


def is_picture(encoded: bytes) -> bool:
    """Whether the bytes begin as a picture does."""
    try:
        with Image.open(io.BytesIO(encoded), formats=picture_formats()):
            return True
    except DECODE_ERRORS:
        return False


def decode(encoded: bytes) -> Decoded:
    """The whole image as RGB, upright by its EXIF orientation, transparency over white.

    Raises:
        UnusableImage: when the bytes are no whole image, or more than one, or their levels' range is not known.
    """
    try:
        with Image.open(io.BytesIO(encoded), formats=picture_formats()) as opened:
            _refuse_several(opened)
            image: Image.Image = ImageOps.exif_transpose(opened)
            if image.mode.startswith(("I", "F")):
                return Decoded(_by_range(image, opened), True)
            if image.mode == "RGB":
                image.load()
                return Decoded(image, False)
            if image.has_transparency_data:
                image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
            return Decoded(image.convert("RGB"), False)
    except UnusableImage:
        raise
    except DECODE_ERRORS as error:
        # Pillow names the buffer's address, which tells nobody anything.
        reason = "not an image" if isinstance(error, UnidentifiedImageError) else str(error) or type(error).__name__
        raise UnusableImage("broken image", reason) from error


def _refuse_several(opened: Image.Image) -> None:
    """An animation or pages: which of them was preferred, nobody knows."""
    if getattr(opened, "is_animated", False) and opened.format not in WITH_A_FIRST_PICTURE:
        count = getattr(opened, "n_frames")  # noqa: B009  Image has it only in formats that can hold several
        reason = f"{count} in one {opened.format}; save the one that is meant as a file of its own"
        raise UnusableImage("several pictures", reason)


def _by_range(image: Image.Image, opened: Image.Image) -> Image.Image:
    """Gray levels of more than 8 bits as RGB. Pillow's own ``convert`` cuts them off at 255.

    Args:
        image: in one of Pillow's modes I and F.
        opened: the file, whose format states the range.
    """
    levels = numpy.asarray(image)
    dark, light = _range_of(levels, opened)
    tags = getattr(opened, "tag_v2", {})
    if tags.get(PHOTOMETRIC) == WHITE_IS_ZERO:
        dark, light = light, dark
    # In place: a large picture in floats is larger still.
    shares = levels.astype(numpy.float32)
    shares -= dark
    shares *= 255 / (light - dark)
    eights = shares.clip(0, 255, out=shares).round(out=shares).astype(numpy.uint8)
    # A key: the level that is transparent, which lies over white.
    if isinstance(key := image.info.get("transparency"), int):
        eights[levels == key] = 255
    return Image.fromarray(eights).convert("RGB")


def _range_of(levels: numpy.ndarray, opened: Image.Image) -> tuple[float, float]:
    """The levels of black and white: of whole numbers of up to 16 bits all that their bits can state; of others what a
    TIFF states, and of floats else 0 and 1, where all levels lie within."""
    tags = getattr(opened, "tag_v2", {})
    if opened.format in WHOLE_SIXTEEN_BITS and opened.mode != "F":
        return 0, SIXTEEN_BITS
    if opened.format == "TIFF" and opened.mode.startswith("I;16"):
        return 0, 2 ** tags[BITS_PER_SAMPLE][0] - 1
    # Not the tags MinSampleValue and MaxSampleValue: TIFF 6.0 forbids to show a picture by those.
    ranges = [(_number(tags.get(SMALLEST_LEVEL)), _number(tags.get(LARGEST_LEVEL)))]
    ranges += [(0.0, 1.0)] if opened.mode == "F" else []
    lowest, highest = float(levels.min()), float(levels.max())
    for dark, light in ranges:
        # False for what is not a number, in the tags or among the levels.
        if -math.inf < dark <= lowest and highest <= light < math.inf and dark < light:
            return dark, light
    raise UnusableImage(
        "unknown range", f"{opened.mode} levels from {lowest:g} to {highest:g}; save it with 8 or 16 bits a level"
    )


def _number(tag: object) -> float:
    """The value of a TIFF's tag, that of its first channel; not a number where it has none."""
    value = tag[0] if isinstance(tag, tuple) and tag else tag
    return float(value) if isinstance(value, numbers.Real) else math.nan


def pixels(encoded: bytes, bucket: Bucket) -> torch.Tensor:
    """An encoded image as its bucket shows it: [3, height, width], fp32 in [−1, 1].

    Raises:
        UnusableImage: as :func:`decode`.
    """
    import torch  # here, because `check` decodes without it

    image = decode(encoded).image
    (resized_width, resized_height), left, top = place(image.size, bucket)
    # Resized and cut in one go: the whole of a very long image, resized, would not fit into memory.
    across, down = image.width / resized_width, image.height / resized_height
    box = (left * across, top * down, (left + bucket.width) * across, (top + bucket.height) * down)
    image = image.resize(bucket, Image.Resampling.LANCZOS, box)
    return torch.from_numpy(numpy.asarray(image).copy()).permute(2, 0, 1).float() / 127.5 - 1.0
