"""Which .safetensors files of a diffusers folder are one part's weights: one precision of them, all shards of it."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path

from chats.words import shown_error

from ..support.tensor_files import TensorInfo, read_tensors
from .source_error import SourceError

# What is taken where several are there: full precision first. The authors' averages and their like come after them.
VARIANTS = ("", "fp16", "bf16")
NAME = re.compile(
    r"(?P<stem>diffusion_pytorch_model|model)(?:\.(?P<variant>\w+?))?(?P<shard>-\d{5}-of-\d{5})?"
    r"(?:\.(?P<late>\w+?))?\.safetensors"
)


@dataclass(frozen=True)
class WeightFiles:
    """The files of one part, and the variant's name where they are not in full precision."""

    files: tuple[Path, ...]
    variant: str | None

    def tensors(self) -> dict[str, TensorInfo]:
        """Shape and dtype of every weight, from headers alone."""
        return {key: info for file in self.files for key, info in read_tensors(file, SourceError).items()}


def find_weights(folder: Path) -> WeightFiles:
    """The weights of a part, as diffusers and transformers choose them: shards where an index lists them, else one
    file.

    Raises:
        SourceError: when there are none, or a shard is missing.
    """
    found = [match for file in sorted(folder.iterdir()) if file.is_file() and (match := NAME.fullmatch(file.name))]
    variants = {match["variant"] or match["late"] or "": match["stem"] for match in found}
    if not variants:
        raise SourceError(
            f"{folder} has no .safetensors file; pickled weights (.bin) are never opened, convert them first"
        )
    variant = next((known for known in VARIANTS if known in variants), min(variants))
    stem = variants[variant]
    index = folder / f"{stem}.safetensors.index{'.' if variant else ''}{variant}.json"
    if index.is_file():
        return WeightFiles(_shards(index), variant or None)
    whole = folder / f"{stem}{'.' if variant else ''}{variant}.safetensors"
    if not whole.is_file():
        shard = next(match[0] for match in found if (match["variant"] or match["late"] or "") == variant)
        raise SourceError(f"{folder} has {shard} but no {index.name}, which lists its shards; download it again")
    return WeightFiles((whole,), variant or None)


def _shards(index: Path) -> tuple[Path, ...]:
    """The files that an index lists, each of which is there and holds what it is listed with."""
    try:
        listed: dict[str, str] = dict(json.loads(index.read_text(encoding="utf-8"))["weight_map"])
        names = sorted(set(listed.values()))
        files = [index.parent / name for name in names if Path(name).name == name]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise SourceError(f"{index} cannot be read ({shown_error(error)}); download it again") from error
    missing = [name for name in names if not (index.parent / name).is_file()]
    if missing or len(files) != len(names):
        raise SourceError(
            f"{index} lists {len(names)} files, of which {len(missing)} are missing, the first is "
            f"{(missing or names)[0]}; download the folder again"
        )
    held = {key for file in files for key in read_tensors(file, SourceError)}
    if lost := sorted(listed.keys() - held):
        raise SourceError(f"{index} lists `{lost[0]}`, which its files do not hold; download the folder again")
    return tuple(files)
