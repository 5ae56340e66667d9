"""What a run keeps of its evaluation for each later export of its pair: which negative was better."""

from __future__ import annotations

import json
from pathlib import Path
from typing import get_args

from chats.files import write_text
from chats.pair import Negative

from .checkpoint import Checkpoint

FILE = "better_negative.json"


def write_negative(output_dir: Path, weights_sha256: str, negative: Negative | None) -> None:
    """Writes the verdict on the weights with a digest; None where there was no clear one."""
    write_text(output_dir / FILE, json.dumps({"weights_sha256": weights_sha256, "negative": negative}) + "\n")


def read_negative(output_dir: Path, checkpoint: Checkpoint) -> Negative | None:
    """The better negative of a checkpoint's pair; None for other weights than were evaluated, and without a verdict."""
    path = output_dir / FILE
    found = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    if found.get("weights_sha256") != checkpoint.weights_sha256:
        return None
    return next((word for word in get_args(Negative) if word == found["negative"]), None)
