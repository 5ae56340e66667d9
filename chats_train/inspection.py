"""What a safetensors file is, from its header alone: no tensor is read, and nothing is ever unpickled."""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from safetensors import safe_open

from chats.pair import PairMetadata, read_header
from chats.words import shown

# An SD or SDXL UNet tells its family by the width of the text it attends to.
UNET_FAMILIES = {768: "SD1.5", 1024: "SD2", 1280: "SDXL refiner", 2048: "SDXL"}
UNET_CONFIG_NAMES = {768: "sd15", 2048: "sdxl"}
# Parts of a native checkpoint, by key prefix.
CHECKPOINT_PARTS = {
    "denoiser": ("model.diffusion_model.",),
    "VAE": ("first_stage_model.", "vae."),
    "text encoders": ("cond_stage_model.", "conditioner.", "text_encoders."),
}
LORA_ENDINGS = (".lora_down.weight", ".lora_up.weight", ".lora_A.weight", ".lora_B.weight", ".alpha")
DOWN_ENDINGS = (".lora_down.weight", ".lora_A.weight")
# Plain differences beside the factors: of a weight (a norm's) and of a bias.
DIFF_ENDINGS = (".diff", ".diff_b")
FLUX_RELATIVES = ("distilled_guidance_layer.", "double_stream_modulation_img.")
MARKERS = {"v_pred": "v-prediction", "ztsnr": "zero terminal SNR"}
UNITS = ("B", "KB", "MB", "GB", "TB")


@dataclass(frozen=True)
class TensorInfo:
    """One tensor of a header."""

    shape: tuple[int, ...]
    dtype: str

    @property
    def numbers(self) -> int:
        return math.prod(self.shape)


Tensors = Mapping[str, TensorInfo]


@dataclass(frozen=True)
class DenoiserKind:
    """What a denoiser is: ``words`` for people, ``family`` by its name in the config where it has one, and the layout
    of its keys."""

    words: str
    family: str | None
    layout: Literal["native", "diffusers"]

    def __str__(self) -> str:
        return f"{self.words} ({self.layout} layout)"


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


def read_tensors(path: Path) -> dict[str, TensorInfo]:
    """Shape and dtype of every tensor, by key; the file is one that ``read_header`` has opened before."""
    with safe_open(path, framework="pt") as file:
        slices = {key: file.get_slice(key) for key in file.keys()}  # noqa: SIM118  safe_open is no mapping
        return {key: TensorInfo(tuple(found.get_shape()), found.get_dtype()) for key, found in slices.items()}


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


def is_lora(tensors: Iterable[str]) -> bool:
    """Whether a file changes a model rather than being one."""
    return any(key.endswith((*DOWN_ENDINGS, *DIFF_ENDINGS)) for key in tensors)


def denoiser_kind(tensors: Tensors) -> DenoiserKind | None:
    """What a denoiser is by its own keys, prefix removed; None for one that is not known here."""
    if "joint_blocks.0.context_block.attn.qkv.weight" in tensors:
        return DenoiserKind("SD3", "sd3", "native")
    # Chroma and Flux.2 have Flux.1's blocks too, and modulate them from elsewhere.
    if "double_blocks.0.img_attn.qkv.weight" in tensors and not any(key.startswith(FLUX_RELATIVES) for key in tensors):
        return DenoiserKind(
            f"Flux.1-{'dev' if 'guidance_in.in_layer.weight' in tensors else 'schnell'}", "flux", "native"
        )
    # Qwen-Image has the same blocks, and no other names than diffusers'; its text goes in through `txt_in`.
    if "transformer_blocks.0.attn.add_k_proj.weight" in tensors and "txt_in.weight" not in tensors:
        flux = "single_transformer_blocks.0.attn.to_k.weight" in tensors
        return DenoiserKind("Flux" if flux else "SD3", "flux" if flux else "sd3", "diffusers")
    for beginning, layout in (("input_blocks.", "native"), ("down_blocks.", "diffusers")):
        keys = (key for key in tensors if key.startswith(beginning) and key.endswith("attn2.to_k.weight"))
        if (key := next(keys, None)) is not None:
            width = tensors[key].shape[-1]
            return DenoiserKind(
                UNET_FAMILIES.get(width, f"UNet with text of width {width}"), UNET_CONFIG_NAMES.get(width), layout
            )
    return None


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
        f"LoRA{rank} for {_lora_family(tensors)} ({style}), {len(modules)} modules, {with_alpha} of them with "
        f"alpha{beside}"
    )


def _ranks(ranks: set[int], most: int = 3) -> str:
    """A few ranks one by one, many by their range."""
    return ", ".join(map(str, sorted(ranks))) if len(ranks) <= most else f"{min(ranks)} to {max(ranks)}"


def _lora_family(tensors: Tensors) -> str:
    names = [key.replace(".", "_") for key in tensors]
    if any("single_transformer_blocks" in name or "single_blocks" in name for name in names):
        return "Flux"
    if any("joint_blocks" in name or "transformer_blocks_0_attn_add_k" in name for name in names):
        return "SD3"
    downs = {key: info for key, info in tensors.items() if key.endswith(DOWN_ENDINGS)}
    widths = [info.shape[1] for key, info in downs.items() if "attn2_to_k" in key.replace(".", "_")]
    if widths:
        return UNET_FAMILIES.get(widths[0], f"a UNet with text of width {widths[0]}")
    return (
        "SD3 or Flux"
        if any("transformer_blocks_" in name and "attentions" not in name for name in names)
        else "a model not known here"
    )


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


def bytes_text(size: float) -> str:
    """A size in decimal units, such as 6.94 GB."""
    for unit in UNITS:
        if size < 1000 or unit == UNITS[-1]:
            return f"{size:.3g} {unit}" if unit != "B" else f"{size:.0f} B"
        size /= 1000
    raise AssertionError("the last unit takes all sizes")


def count_text(numbers: int) -> str:
    """A count of parameters, such as 2.57 B."""
    for limit, unit in ((1e9, " B"), (1e6, " M"), (1e3, " K")):
        if numbers >= limit:
            return f"{numbers / limit:.3g}{unit}"
    return str(numbers)
