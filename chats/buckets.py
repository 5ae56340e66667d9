"""Aspect-ratio buckets, and what of an image a bucket shows.

Buckets as in NovelAI's write-up (https://blog.novelai.net/novelai-improvements-on-stable-diffusion-e10d38db82ac): sizes
of about equal area, one per aspect ratio. Both images of a pair go to one bucket, since they share timestep and noise.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

Size = tuple[int, int]


class Bucket(NamedTuple):
    """A training size in pixels."""

    width: int
    height: int


class SizeConditioning(NamedTuple):
    """SDXL's micro-conditioning of one image, in pixels and in the order of its ``time_ids`` (arXiv 2307.01952, Section
    2.2).

    The crop's corner is one of the image after resizing.
    """

    original_height: int
    original_width: int
    crop_top: int
    crop_left: int
    target_height: int
    target_width: int


class Placement(NamedTuple):
    """How an image fills its bucket: resized to (width, height), then cut out from (left, top) on."""

    resized: Size
    left: int
    top: int


def make_buckets(resolution: int, step: int, min_side: int, max_side: int) -> tuple[Bucket, ...]:
    """All sizes with sides that are multiples of ``step`` in [min_side, max_side] and an area of at most resolution²,
    the largest for each shorter side, and the square. Arguments and results in pixels; sorted by aspect ratio.
    """
    square = max(step, resolution // step * step)
    buckets = {Bucket(square, square)}
    first, last = math.ceil(min_side / step) * step, max_side // step * step
    for short in range(first, square + 1, step):
        long = min(resolution * resolution // short // step * step, last)
        if long >= short:
            buckets |= {Bucket(short, long), Bucket(long, short)}
    return tuple(sorted(buckets, key=lambda bucket: (bucket.width / bucket.height, bucket.width)))


def pair_bucket(buckets: Sequence[Bucket], chosen: Size, rejected: Size) -> Bucket:
    """The bucket nearest to a pair in log aspect ratio, the larger one of two as near; sizes are (width, height).

    Where the two images differ in shape, their mean counts, so that both lose about the same share to the crop.
    """
    ratio = sum(math.log(width / height) for width, height in (chosen, rejected)) / 2
    # Rounded, so that the last bit of a logarithm does not decide between two.
    return min(
        buckets,
        key=lambda bucket: (
            round(abs(math.log(bucket.width / bucket.height) - ratio), 9),
            -bucket.width * bucket.height,
        ),
    )


def place(size: Size, bucket: Bucket) -> Placement:
    """Where in its bucket an image of ``size`` (width, height) lies: scaled to cover it, cut equally on both sides."""
    width, height = size
    scale = max(bucket.width / width, bucket.height / height)
    resized = max(bucket.width, round(width * scale)), max(bucket.height, round(height * scale))
    return Placement(resized, (resized[0] - bucket.width) // 2, (resized[1] - bucket.height) // 2)


def size_conditioning(size: Size, bucket: Bucket) -> SizeConditioning:
    """What SDXL is told about an image of ``size`` (width, height) in its bucket: the true size and the true crop."""
    placement = place(size, bucket)
    return SizeConditioning(size[1], size[0], placement.top, placement.left, bucket.height, bucket.width)
