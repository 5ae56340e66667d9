"""What a safetensors file is, from its header alone: no tensor is read, and nothing is ever unpickled."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path

from chats.distilled import USAGE, DistilledMetadata
from chats.pair import PairMetadata, read_header
from chats.words import shown

from .families.scaled_fp8 import FP8, MARK, PACKED, SCALES
from .layouts.recognition import (
    CHECKPOINT_PARTS,
    DIFF_ENDINGS,
    DOWN_ENDINGS,
    EDM_MARKS,
    OLDER_DOWN_ENDINGS,
    PREDICTION_MARKS,
    adapter_kind,
    adapter_modules,
    denoiser_kind,
    is_lora,
    lora_title,
    on_text_encoder,
    other_input,
)
from .support.amounts import bytes_text, count_text
from .support.errors import UserError
from .support.gguf import GgufHeader, read_gguf
from .support.tensor_files import Tensors, read_tensors

PREFIX = CHECKPOINT_PARTS["denoiser"][0]
# Where torch's distributed checkpoint states which rows a file holds.
SHARDED = "DCP_SHARDING_INFO"
PART = "a part of a run's checkpoint, one of a process each; `export` writes the pair"


def describe(path: str | os.PathLike[str]) -> list[str]:
    """What a file is, a line each: its kind and layout, sizes, and what its metadata says.

    Raises:
        PairError: when it is no whole safetensors file, or its `chats.*` metadata cannot be understood.
        UserError: for a folder, and a GGUF file that is cut off.
    """
    path = Path(path)
    if path.is_dir():
        raise UserError(f"{path} is a folder; name a file in it, or `export` the pair of a run's checkpoint")
    if path.is_file() and (gguf := read_gguf(path)) is not None:
        return _gguf(path, gguf)
    metadata = read_header(path)
    tensors = read_tensors(path)
    dtypes = Counter(info.dtype for info in tensors.values() if info.numbers)
    numbers = sum(info.numbers for info in tensors.values())
    lines = [
        f"{path.name}: {PART if SHARDED in metadata else kind(tensors)}",
        f"  {bytes_text(path.stat().st_size)}, {len(tensors)} tensors, {count_text(numbers)} parameters"
        + (f", {', '.join(dtypes)}" if dtypes else ""),
    ]
    lines += _parts(tensors) + _member(metadata, path.name)
    lines += [
        f"  {_shortened(key)}: {_shortened(value)}"
        for key, value in sorted(metadata.items())
        if not key.startswith("chats.") and key != SHARDED
    ]
    return lines


def kind(tensors: Tensors) -> str:
    """Family, role and layout in a few words, by key names and shapes."""
    if is_lora(tensors):
        return _lora_kind(tensors)
    in_checkpoint = any(key.startswith(PREFIX) for key in tensors)
    bare = (
        {key.removeprefix(PREFIX): info for key, info in tensors.items() if key.startswith(PREFIX)}
        if in_checkpoint
        else tensors
    )
    found = denoiser_kind(bare)
    role = "checkpoint" if _has_part(tensors, "VAE") else "diffusion model"
    parts = [
        "a safetensors file of a kind not known here" if found is None else f"{found} {role}",
        None if found is None else other_input(bare),
        _quantization(bare),
        *_marks(tensors),
    ]
    return ", ".join(part for part in parts if part is not None)


def _quantization(bare: Tensors) -> str | None:
    """In what a denoiser's weights are, where they are not their own numbers or have 8 bits."""
    dtypes = {info.dtype for info in bare.values() if info.numbers}
    if dtypes & set(PACKED) - {"U8"} or any(
        info.dtype == "U8" and key.endswith(".weight") for key, info in bare.items()
    ):
        return "quantized"
    if not dtypes & set(FP8):
        return None
    is_scaled = any(key.endswith(SCALES) or key.rpartition(".")[2] == MARK for key in bare)
    return "scaled fp8" if is_scaled else "fp8 without scales"


def _marks(tensors: Tensors) -> list[str]:
    """What the marks on a model say of its prediction and noise.

    ComfyUI's checkpoint loader looks for them at the file's root, its loader of diffusion models below the prefix where
    there is one; each is blind to the other place.
    """
    words = PREDICTION_MARKS | EDM_MARKS
    at_root = [words[mark] for mark in words if mark in tensors]
    below = [words[mark] for mark in words if PREFIX + mark in tensors]
    return [
        *([f"marked {' and '.join(at_root)}"] if at_root else []),
        *([f"marked {' and '.join(below)} below `{PREFIX}`, where no checkpoint loader looks"] if below else []),
    ]


def _gguf(path: Path, header: GgufHeader) -> list[str]:
    architecture = f" of {shown(header.architecture)}" if header.architecture else ""
    return [
        f"{path.name}: a GGUF file{architecture}, version {header.version}, which is no safetensors file",
        f"  {bytes_text(path.stat().st_size)}, {header.tensors} tensors",
        "  in ComfyUI two GGUF loaders, one for each member, and CHATS Apply make a pair of such files",
        "  the trainer does not read it; train on the .safetensors file that it was made from",
    ]


def _lora_kind(tensors: Tensors) -> str:
    """Family, ranks and completeness of a LoRA."""
    name = adapter_kind(tensors)
    downs = {key: info for key, info in tensors.items() if key.endswith(DOWN_ENDINGS)}
    diffs = [key for key in tensors if key.endswith(DIFF_ENDINGS)]
    modules = adapter_modules(tensors)
    with_alpha = sum(f"{module}.alpha" in tensors for module in modules)
    on_text = sum(map(on_text_encoder, modules))
    beside = f", {on_text} of them on text encoders" if on_text else ""
    beside += f", {len(diffs)} plain differences" if diffs else ""
    rank = f" of rank {_ranks({info.shape[0] for info in downs.values()})}" if downs else ""
    return (
        f"{name}{rank} for {lora_title(tensors)} ({_style(tensors)}), {len(modules)} modules, {with_alpha} of them "
        f"with alpha{beside}"
    )


def _style(tensors: Tensors) -> str:
    """Whose names a LoRA's keys are."""
    # A model's own keys say more than its text encoders'.
    first = min((key for key in tensors), key=on_text_encoder)
    if first.startswith("lora_"):
        return "kohya keys"
    keys = f"`{shown(first.partition('.')[0])}.` keys"
    if any(key.endswith(OLDER_DOWN_ENDINGS) for key in tensors):
        return f"{keys}, diffusers' older form"
    if first.startswith(("unet.", "transformer.", "text_encoder")) and any(".lora_A." in key for key in tensors):
        return f"{keys}, diffusers' PEFT form"
    return keys


def _ranks(ranks: set[int], most: int = 3) -> str:
    """A few ranks one by one, many by their range."""
    return ", ".join(map(str, sorted(ranks))) if len(ranks) <= most else f"{min(ranks)} to {max(ranks)}"


def _has_part(tensors: Iterable[str], part: str) -> bool:
    return any(key.startswith(CHECKPOINT_PARTS[part]) for key in tensors)


def _parts(tensors: Tensors) -> list[str]:
    """The parts of a native checkpoint with their sizes; nothing for other files."""
    lines = []
    for part, prefixes in CHECKPOINT_PARTS.items():
        held = [info for key, info in tensors.items() if key.startswith(prefixes)]
        if held:
            lines.append(f"  {part}: {len(held)} tensors, {count_text(sum(info.numbers for info in held))} parameters")
    return lines


def _member(metadata: Mapping[str, str], name: str) -> list[str]:
    """What the file says of itself as a member of a pair, or as distilled from one."""
    if (distilled := DistilledMetadata.from_header(metadata, name)) is not None:
        return [
            f"  distilled from {distilled.origin()}: {USAGE}",
            *(f"  {key}: {_shortened(value)}" for key, value in sorted(distilled.to_header().items())),
        ]
    member = PairMetadata.from_header(metadata, name)
    if member is None:
        return ["  no pair metadata"]
    lines = [f"  the {member.member} member of the pair {shown(member.pair_id)}"]
    if recommendation := member.recommendation():
        lines.append(f"  sample it with {recommendation}")
    if origin := member.origin():
        lines.append(f"  trained on {origin}")
    lines += [f"  {key}: {_shortened(value)}" for key, value in sorted(member.to_header().items())]
    return lines


def _shortened(value: str, longest: int = 100) -> str:
    return shown(value, longest) if len(value) <= longest else f"{shown(value, longest)} ({len(value)} characters)"
