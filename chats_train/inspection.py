"""What a safetensors file is, from its header alone: no tensor is read, and nothing is ever unpickled."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path

from chats.pair import PairMetadata, read_header
from chats.words import shown

from .layouts.recognition import DIFF_ENDINGS, DOWN_ENDINGS, denoiser_kind, is_lora, lora_title
from .support.amounts import bytes_text, count_text
from .support.tensor_files import Tensors, read_tensors

# Parts of a native checkpoint, by key prefix.
CHECKPOINT_PARTS = {
    "denoiser": ("model.diffusion_model.",),
    "VAE": ("first_stage_model.", "vae."),
    "text encoders": ("cond_stage_model.", "conditioner.", "text_encoders."),
}
LORA_ENDINGS = (".lora_down.weight", ".lora_up.weight", ".lora_A.weight", ".lora_B.weight", ".alpha")
MARKERS = {"v_pred": "v-prediction", "ztsnr": "zero terminal SNR"}


def describe(path: str | os.PathLike[str]) -> list[str]:
    """What a file is, a line each: its kind and layout, sizes, and what its metadata says.

    Raises:
        PairError: when it is no whole safetensors file, or its `chats.*` metadata cannot be understood.
    """
    path = Path(path)
    metadata = read_header(path)
    tensors = read_tensors(path)
    dtypes = Counter(info.dtype for info in tensors.values() if info.numbers)
    numbers = sum(info.numbers for info in tensors.values())
    lines = [
        f"{path.name}: {kind(tensors)}",
        f"  {bytes_text(path.stat().st_size)}, {len(tensors)} tensors, {count_text(numbers)} parameters"
        + (f", {', '.join(dtypes)}" if dtypes else ""),
    ]
    lines += _parts(tensors) + _member(metadata, path.name)
    lines += [
        f"  {_shortened(key)}: {_shortened(value)}"
        for key, value in sorted(metadata.items())
        if not key.startswith("chats.")
    ]
    return lines


def kind(tensors: Tensors) -> str:
    """Family, role and layout in a few words, by key names and shapes."""
    if is_lora(tensors):
        return _lora_kind(tensors)
    prefix = CHECKPOINT_PARTS["denoiser"][0]
    in_checkpoint = any(key.startswith(prefix) for key in tensors)
    bare = (
        {key.removeprefix(prefix): info for key, info in tensors.items() if key.startswith(prefix)}
        if in_checkpoint
        else tensors
    )
    found = denoiser_kind(bare)
    if found is None:
        return "a safetensors file of a kind not known here"
    role = "checkpoint" if _has_part(tensors, "VAE") else "diffusion model"
    markers = [words for key, words in MARKERS.items() if key in bare]
    return f"{found} {role}" + (f", marked {' and '.join(markers)}" if markers else "")


def _lora_kind(tensors: Tensors) -> str:
    """Family, ranks and completeness of a LoRA."""
    downs = {key: info for key, info in tensors.items() if key.endswith(DOWN_ENDINGS)}
    diffs = [key for key in tensors if key.endswith(DIFF_ENDINGS)]
    modules = {_module(key) for key in downs}
    with_alpha = sum(f"{module}.alpha" in tensors for module in modules)
    first = next(iter([*downs, *diffs]))
    style = "kohya keys" if first.startswith("lora_") else f"`{shown(first.partition('.')[0])}.` keys"
    beside = f", {len(diffs)} plain differences" if diffs else ""
    rank = f" of rank {_ranks({info.shape[0] for info in downs.values()})}" if downs else ""
    return (
        f"LoRA{rank} for {lora_title(tensors)} ({style}), {len(modules)} modules, {with_alpha} of them with "
        f"alpha{beside}"
    )


def _ranks(ranks: set[int], most: int = 3) -> str:
    """A few ranks one by one, many by their range."""
    return ", ".join(map(str, sorted(ranks))) if len(ranks) <= most else f"{min(ranks)} to {max(ranks)}"


def _module(key: str) -> str:
    return next((key.removesuffix(ending) for ending in LORA_ENDINGS if key.endswith(ending)), key)


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
    """What the file says of itself as a member of a pair."""
    member = PairMetadata.from_header(metadata, name)
    if member is None:
        return ["  no pair metadata"]
    lines = [f"  the {member.member} member of the pair {shown(member.pair_id)}"]
    if recommendation := member.recommendation():
        lines.append(f"  sample it with {recommendation}")
    lines += [f"  {key}: {_shortened(value)}" for key, value in sorted(member.to_header().items())]
    return lines


def _shortened(value: str, longest: int = 100) -> str:
    return shown(value, longest) if len(value) <= longest else f"{shown(value, longest)} ({len(value)} characters)"
