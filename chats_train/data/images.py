"""Encoded images to pixels, with Pillow."""

from __future__ import annotations

import io
import struct
import zlib
from typing import TYPE_CHECKING

import numpy
from PIL import Image, ImageOps

from .buckets import Bucket, place

if TYPE_CHECKING:
    import torch

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


def decode(encoded: bytes) -> Image.Image:
    """The whole image as RGB, upright by its EXIF orientation, transparency over white.

    Raises:
        OSError: when the bytes are no whole image; the message says why.
    """
    try:
        with Image.open(io.BytesIO(encoded)) as opened:
            image: Image.Image = ImageOps.exif_transpose(opened)
            if image.mode == "RGB":
                image.load()
                return image
            if image.has_transparency_data:
                image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
            return image.convert("RGB")
    except DECODE_ERRORS as error:
        # Pillow names the buffer's address, which tells nobody anything.
        reason = (
            "not an image" if isinstance(error, Image.UnidentifiedImageError) else str(error) or type(error).__name__
        )
        raise OSError(reason) from error


def pixels(encoded: bytes, bucket: Bucket) -> torch.Tensor:
    """An encoded image as its bucket shows it: [3, height, width], fp32 in [−1, 1].

    Raises:
        OSError: as :func:`decode`.
    """
    import torch  # here, because `check` decodes without it

    image = decode(encoded)
    (resized_width, resized_height), left, top = place(image.size, bucket)
    # Resized and cut in one go: the whole of a very long image, resized, would not fit into memory.
    across, down = image.width / resized_width, image.height / resized_height
    box = (left * across, top * down, (left + bucket.width) * across, (top + bucket.height) * down)
    image = image.resize(bucket, Image.Resampling.LANCZOS, box)
    return torch.from_numpy(numpy.asarray(image).copy()).permute(2, 0, 1).float() / 127.5 - 1.0
