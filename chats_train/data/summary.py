"""What there is to say of pairs in columns: their buckets, near-duplicates, enlarged and distinct images."""

from __future__ import annotations

import numpy
import pyarrow as pa
from pyarrow import compute

from chats.buckets import Bucket, place

from .pair_columns import SIDES, PairColumns, codes, distinct


def buckets_of(samples: PairColumns) -> list[tuple[Bucket, int]]:
    """Each bucket with the number of its pairs, the fullest first."""
    found, first, counts = numpy.unique(_numbers(samples, "bucket_"), axis=0, return_index=True, return_counts=True)
    order = numpy.lexsort((first, -counts))
    return [(Bucket(*found[place].tolist()), int(counts[place])) for place in order]


def near_duplicates(samples: PairColumns) -> list[str]:
    """How many samples repeat a part of an earlier one, a line for each kind; they are trained on."""
    chosen, rejected = image_codes(samples)
    prompts = codes(samples.column("prompt"))
    kinds = {
        "both images, under another prompt": (numpy.minimum(chosen, rejected), numpy.maximum(chosen, rejected)),
        "prompt and chosen image": (prompts, chosen),
        "prompt and rejected image": (prompts, rejected),
    }
    counts = {kind: len(samples) - distinct(*columns) for kind, columns in kinds.items()}
    return [f"near-duplicates ({kind} of an earlier pair): {count}" for kind, count in counts.items() if count]


def enlarged(samples: PairColumns) -> int:
    """How many pairs have an image smaller than its bucket."""
    buckets, small = _numbers(samples, "bucket_"), numpy.zeros(len(samples), bool)
    for side in SIDES:
        sizes = numpy.concatenate([_numbers(samples, f"{side}_"), buckets], axis=1)
        different, which = numpy.unique(sizes, axis=0, return_inverse=True)
        are = [place((w, h), Bucket(*bucket)).resized[0] > w for w, h, *bucket in different.tolist()]
        small |= numpy.array(are, bool)[which.reshape(-1)]
    return int(small.sum())


def images_by_bucket(samples: PairColumns) -> dict[Bucket, int]:
    """How many different images each bucket has."""
    buckets, which = numpy.unique(_numbers(samples, "bucket_"), axis=0, return_inverse=True)
    images, which = numpy.concatenate(image_codes(samples)), numpy.tile(which.reshape(-1), 2)
    return {Bucket(*bucket): distinct(images[which == number]) for number, bucket in enumerate(buckets.tolist())}


def prompt_count(samples: PairColumns) -> int:
    """How many different prompts there are."""
    return distinct(codes(samples.column("prompt")))


def prompt_bytes(samples: PairColumns) -> numpy.ndarray:
    """How long each different prompt is, in bytes of UTF-8."""
    return compute.binary_length(compute.unique(samples.column("prompt"))).to_numpy()


def image_codes(samples: PairColumns) -> tuple[numpy.ndarray, numpy.ndarray]:
    """A number for each chosen and each rejected image, the same for the same image."""
    both = [samples.column(f"{side}_sha256") for side in SIDES]
    numbers = codes(pa.chunked_array([chunk for column in both for chunk in column.chunks], both[0].type))
    return numbers[: len(samples)], numbers[len(samples) :]


def _numbers(samples: PairColumns, prefix: str) -> numpy.ndarray:
    """Widths and heights, [pairs, 2]."""
    columns = [samples.column(f"{prefix}{field}").to_numpy() for field in ("width", "height")]
    return numpy.stack(columns, axis=1)
