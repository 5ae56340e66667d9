"""The pairs of a rated data set: which pictures, which prompt, which bucket, and a picture's pixels."""

from __future__ import annotations

import hashlib
import io
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...chats.buckets import Bucket, make_buckets, pair_bucket, place, size_conditioning
from ...chats.draws import pair_id
from ...chats.taste.dataset import TasteDataset
from ...chats.taste.names import CANDIDATES, METADATA
from ...chats.words import shown, shown_error
from ..rating import data_sets

# Sides of buckets are multiples of this, in pixels, as the headless trainer's are: every VAE and network divides it.
BUCKET_STEP = 64


@dataclass(frozen=True)
class Picture:
    """A file, read once; ``sha256`` is of its bytes, sizes are in pixels."""

    path: Path
    sha256: str
    width: int
    height: int

    def pixels(self, bucket: Bucket) -> Tensor:
        """The picture as its bucket shows it, as ComfyUI has pictures: [1, height, width, 3] from 0 to 1.

        Raises:
            ValueError: when the file is not the one that was read before.
        """
        from PIL import Image

        image = _opened(self.path, encoded := self.path.read_bytes())
        if hashlib.sha256(encoded).hexdigest() != self.sha256:
            raise ValueError(f"{self.path} changed while the run began; queue it again")
        (width, height), left, top = place(image.size, bucket)
        across, down = image.width / width, image.height / height
        box = (left * across, top * down, (left + bucket.width) * across, (top + bucket.height) * down)
        image = image.resize(bucket, Image.Resampling.LANCZOS, box)
        levels = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8)
        return levels.reshape(1, bucket.height, bucket.width, 3).float() / 255


@dataclass(frozen=True)
class RatedPair:
    """A pair of the data set; ``id`` is of its contents, the same as the headless trainer's."""

    id: str
    prompt: str
    chosen: Picture
    rejected: Picture
    bucket: Bucket = field(compare=False)

    def sizes(self, picture: Picture) -> dict[str, int]:
        """SDXL's entries of a conditioning for one of the pictures."""
        told = size_conditioning((picture.width, picture.height), self.bucket)
        return {
            "width": told.original_width,
            "height": told.original_height,
            "crop_w": told.crop_left,
            "crop_h": told.crop_top,
            "target_width": told.target_width,
            "target_height": told.target_height,
        }


def rated_pairs(folder: Path, resolution: int) -> list[RatedPair]:
    """The usable pairs of a data set, each once.

    Raises:
        ValueError: where there is none, or a picture cannot be read.
        TasteError: from the data set.
    """
    dataset = TasteDataset(folder)
    if not folder.is_dir():
        there = ", ".join(data_sets.names()) or "none: draw candidates with CHATS Save Candidates"
        raise ValueError(f"`dataset` is {folder.name}, which is not in {folder.parent}; there are {there}")
    if (folder / CANDIDATES).is_file():
        dataset.derive()
    buckets = make_buckets(resolution, BUCKET_STEP, resolution // 2, resolution * 2)
    pictures: dict[str, Picture] = {}
    found: dict[str, RatedPair] = {}
    for row in _rows(folder):
        names = [str(row.get(f"{side}_file_name")) for side in ("chosen", "rejected")]
        for name in names:
            if name not in pictures:
                pictures[name] = _picture(folder, name)
        chosen, rejected = (pictures[name] for name in names)
        prompt = str(row.get("prompt", "")).strip()
        if chosen.sha256 == rejected.sha256 or not prompt:
            continue
        bucket = pair_bucket(buckets, (chosen.width, chosen.height), (rejected.width, rejected.height))
        pair = RatedPair(pair_id(prompt, chosen.sha256, rejected.sha256), prompt, chosen, rejected, bucket)
        found[pair.id] = pair
    if not found:
        raise ValueError(
            f"`dataset` is {folder.name}, which has no rated pair{_notes(dataset)}; draw candidates with CHATS Save "
            "Candidates, rate them, and queue again"
        )
    return list(found.values())


def _notes(dataset: TasteDataset) -> str:
    """What does not count in the data set's files, in brackets."""
    notes = dataset.notes()
    return f" ({'; '.join(notes)})" if notes else ""


def _rows(folder: Path) -> list[dict[str, Any]]:
    path = folder / METADATA
    try:
        lines = path.read_text(encoding="utf-8").split("\n") if path.is_file() else []
        rows = [json.loads(line) for line in lines if line.strip()]
    except ValueError as error:
        raise ValueError(
            f"{path} is not JSON, a line a pair ({shown_error(error)}); mend it or move it away"
        ) from error
    if not all(isinstance(row, dict) for row in rows):
        raise ValueError(f"{path} is not JSON objects, a line a pair; mend it or move it away")
    return rows


def _picture(folder: Path, name: str) -> Picture:
    path = folder / name
    if not path.resolve().is_relative_to(folder.resolve()) or not path.is_file():
        raise ValueError(
            f"{folder / METADATA} names the picture {shown(name)}, which is not in the folder; put it back"
        )
    encoded = path.read_bytes()
    image = _opened(path, encoded)
    return Picture(path, hashlib.sha256(encoded).hexdigest(), image.width, image.height)


def _opened(path: Path, encoded: bytes) -> Any:
    """The decoded picture, in RGB."""
    from PIL import Image

    try:
        return Image.open(io.BytesIO(encoded)).convert("RGB")
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(f"{path} is no picture ({shown_error(error)}); put the right file back") from error
