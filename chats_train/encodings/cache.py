"""Latents and prompt embeddings, made once and kept, or made on the fly; either way a pair comes out the same.

The key of an entry is a hash of all that it depends on: the image's bytes and the size it is brought to, or the
caption, and the fingerprint of VAE, text encoders and their precision. So an entry can be missing but never stale, and
runs can share a folder.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor
from tqdm import tqdm

from chats.buckets import Bucket, SizeConditioning, size_conditioning

from ..data.images import pixels
from ..data.pairs import PairImage, PairSample
from ..families.prompts import Prompt, rows_of
from ..support.errors import UserError
from ..support.parallel import ordered_map
from .shards import Entry, ShardStore

# Part of every key: raise it when the same image or caption would be encoded differently than before.
CACHE_VERSION = 1
LATENTS = "latents"
NULL_PROMPT = ""
# Fixed, since the bits of an encoding can depend on the batch that it was made in.
IMAGES_AT_ONCE = 2
PROMPTS_AT_ONCE = 16

Keys = list[str]


class Encoders(Protocol):
    """What turns images and captions into what a denoiser reads; a ``families.Family`` is one."""

    @property
    def fingerprint(self) -> str:
        """Digest of everything that the encodings depend on."""
        ...

    def encode_image(self, pixels: Tensor) -> Tensor:
        """Latents [batch, channels, height, width] for pixels [batch, 3, 8 height, 8 width] in [−1, 1]."""
        ...

    def encode_prompt(self, prompts: list[str]) -> Prompt:
        """Embeddings by name, each [batch, ...]."""
        ...


@dataclass(frozen=True)
class EncodedPair:
    """A pair as the training loop reads it, without a batch dimension and on the CPU.

    ``chosen`` and ``rejected`` are latents [channels, height, width] of one size, ``prompt`` embeddings by name at the
    prompt's own length.
    """

    id: str
    prompt: dict[str, Tensor]
    chosen: Tensor
    rejected: Tensor
    chosen_sizes: SizeConditioning
    rejected_sizes: SizeConditioning


class PairEncodings(ABC):
    """Where encoded pairs come from."""

    @abstractmethod
    def latents(self, image: PairImage, bucket: Bucket) -> Tensor:
        """Latents of one image, [channels, height, width]."""

    @abstractmethod
    def prompt(self, text: str) -> dict[str, Tensor]:
        """Embeddings of a caption by name, without a batch dimension; ``""`` is always there."""

    def pair(self, sample: PairSample) -> EncodedPair:
        """All that training reads of a pair."""
        sides = (sample.chosen, sample.rejected)
        chosen, rejected = (self.latents(image, sample.bucket) for image in sides)
        sizes = [size_conditioning((image.width, image.height), sample.bucket) for image in sides]
        return EncodedPair(sample.id, self.prompt(sample.prompt), chosen, rejected, sizes[0], sizes[1])


class LiveEncodings(PairEncodings):
    """Encodes whenever asked: no disk, but the encoders stay in memory and every epoch pays for them."""

    def __init__(self, encoders: Encoders):
        self.encoders = encoders

    def latents(self, image: PairImage, bucket: Bucket) -> Tensor:
        return _encode_images(self.encoders, [image], torch.stack([_checked_pixels(image, bucket)]))[0]

    def prompt(self, text: str) -> dict[str, Tensor]:
        return _encode_prompts(self.encoders, [text])[0]


class CachedEncodings(PairEncodings):
    """Reads encodings from the cache that :func:`fill_cache` made; needs no encoders, only their fingerprint."""

    def __init__(self, folder: Path, fingerprint: str):
        self.store = ShardStore(folder)
        self.fingerprint = fingerprint

    def latents(self, image: PairImage, bucket: Bucket) -> Tensor:
        return self._read(image_key(image, bucket, self.fingerprint), f"{bucket.width} × {bucket.height} of an image")[
            LATENTS
        ]

    def prompt(self, text: str) -> dict[str, Tensor]:
        return self._read(prompt_key(text, self.fingerprint), f"the caption `{text}`")

    def _read(self, key: str, what: str) -> Entry:
        try:
            return self.store.read(key)
        except KeyError:
            raise UserError(
                f"the cache {self.store.folder} lacks {what}; run `python -m chats_train cache` with this config"
            ) from None


def image_key(image: PairImage, bucket: Bucket, fingerprint: str) -> str:
    """Key of an image's latents, hexadecimal."""
    # Version 0.1.0 decoded such images otherwise: its latents of them must not be read, those of all others may.
    decoding = ["by range"] if image.by_range else []
    return _digest("image", fingerprint, image.sha256, f"{bucket.width}x{bucket.height}", *decoding)


def prompt_key(text: str, fingerprint: str) -> str:
    """Key of a caption's embeddings, hexadecimal."""
    return _digest("prompt", fingerprint, text)


def fill_cache(
    folder: Path,
    samples: Sequence[PairSample],
    encoders: Encoders,
    extra_prompts: Iterable[str] = (),
    process_index: int = 0,
    num_processes: int = 1,
    progress: bool = True,
    between: Callable[[], None] = lambda: None,
) -> None:
    """Encodes what the cache lacks; after a kill it goes on where it was.

    Args:
        folder: the cache.
        samples: the pairs whose images and captions are wanted; ``""`` is always encoded too.
        encoders: in memory while this runs; the caller lets go of them.
        extra_prompts: further captions, of previews for example.
        process_index, num_processes: which share of the work is this process's; the others' appear after they are done.
        progress: shows bars with the time left.
        between: is called after each batch; what it raises ends the work.

    Raises:
        UserError: when an image changed since it was checked, an encoding is not finite, or the disk is full.
    """
    store, fingerprint = ShardStore(folder), encoders.fingerprint
    prompts = {
        prompt_key(text, fingerprint): text
        for text in (NULL_PROMPT, *extra_prompts, *(sample.prompt for sample in samples))
    }
    # By its key, the place of an image among all pairs' two: objects of them all would fill the memory.
    places: dict[str, int] = {}
    keys_of: dict[Bucket, Keys] = {}
    for row, sample in enumerate(samples):
        for side, image in enumerate((sample.chosen, sample.rejected)):
            key = image_key(image, sample.bucket, fingerprint)
            if key not in places:
                keys_of.setdefault(sample.bucket, []).append(key)
            places[key] = 2 * row + side

    def image_of(key: str) -> tuple[PairImage, Bucket]:
        row, side = divmod(places[key], 2)
        sample = samples[row]
        return (sample.rejected if side else sample.chosen), sample.bucket

    def encoded_prompts(wanted: list[Keys]) -> Iterator[tuple[Keys, list[Entry]]]:
        for keys in wanted:
            yield keys, _encode_prompts(encoders, [prompts[key] for key in keys])

    def encoded_images(wanted: list[Keys]) -> Iterator[tuple[Keys, list[Entry]]]:
        for keys, images, batch in ordered_map(lambda keys: _read(keys, image_of), wanted):
            latents = _encode_images(encoders, images, batch)
            yield keys, [{LATENTS: latent} for latent in latents]

    prompt_batches = _batches(list(prompts), PROMPTS_AT_ONCE)[process_index::num_processes]
    image_batches = _batches_by_bucket(keys_of)[process_index::num_processes]
    try:
        _fill(store, prompt_batches, encoded_prompts, "prompt", progress, between)
        _fill(store, image_batches, encoded_images, "image", progress, between)
    finally:
        # Ctrl-C and errors keep what is done.
        store.flush()


def _fill(
    store: ShardStore,
    batches: list[Keys],
    encoded: Callable[[list[Keys]], Iterator[tuple[Keys, list[Entry]]]],
    unit: str,
    progress: bool,
    between: Callable[[], None],
) -> None:
    """Adds what the store lacks of the batches."""
    wanted = [missing for keys in batches if (missing := [key for key in keys if key not in store])]
    total = sum(map(len, batches))
    done = total - sum(map(len, wanted))
    with tqdm(desc=f"encoding {unit}s", total=total, initial=done, unit=unit, disable=not progress) as bar:
        for keys, entries in encoded(wanted):
            store.add(dict(zip(keys, entries, strict=True)))
            bar.update(len(keys))
            between()


def _batches(keys: Keys, size: int) -> list[Keys]:
    return [keys[start : start + size] for start in range(0, len(keys), size)]


def _batches_by_bucket(keys_of: dict[Bucket, Keys]) -> list[Keys]:
    """Batches of equal size in pixels. They follow from the data set alone, not from what is cached already, so that a
    run that was killed and resumed encodes in the same batches as one that was not, and gets the same bits."""
    return [batch for keys in keys_of.values() for batch in _batches(keys, IMAGES_AT_ONCE)]


def _read(keys: Keys, image_of: Callable[[str], tuple[PairImage, Bucket]]) -> tuple[Keys, list[PairImage], Tensor]:
    """Some images with their pixels [batch, 3, height, width]."""
    found = [image_of(key) for key in keys]
    return keys, [image for image, _ in found], torch.stack([_checked_pixels(*each) for each in found])


def _checked_pixels(image: PairImage, bucket: Bucket) -> Tensor:
    """Pixels [3, height, width] of the image that was hashed, not of one that has taken its place since."""
    encoded = image.read()
    if hashlib.sha256(encoded).hexdigest() != image.sha256:
        raise UserError(
            f"{image} changed since it was looked at; start again with `--set data.checksum=true`, which takes the new "
            "one"
        )
    return pixels(encoded, bucket)


def _encode_images(encoders: Encoders, images: Sequence[PairImage], batch: Tensor) -> list[Tensor]:
    """Latents on the CPU, [channels, height, width] each."""
    with torch.no_grad():
        latents = encoders.encode_image(batch).cpu()
    for image, latent in zip(images, latents, strict=True):
        if not latent.isfinite().all():
            raise UserError(
                f"the VAE gives NaN or infinity for {image}; use a VAE that works in its precision, or remove the image"
            )
    # Clones, as rows of one tensor share their memory, which safetensors refuses.
    return [latent.clone() for latent in latents]


def _encode_prompts(encoders: Encoders, texts: list[str]) -> list[Entry]:
    """Embeddings on the CPU, one entry per text."""
    with torch.no_grad():
        rows = rows_of({name: tensor.cpu() for name, tensor in encoders.encode_prompt(texts).items()})
    for row, text in zip(rows, texts, strict=True):
        if not all(tensor.isfinite().all() for tensor in row.values()):
            raise UserError(f"the text encoder gives NaN or infinity for `{text}`; set `mixed_precision` to bf16 or no")
    return [{name: tensor.clone() for name, tensor in row.items()} for row in rows]


def _digest(*parts: str) -> str:
    # Lengths go in too, so that no two lists of parts run together to the same text.
    text = "".join(f"{len(part)}:{part}" for part in (str(CACHE_VERSION), *parts))
    return hashlib.sha256(text.encode()).hexdigest()
