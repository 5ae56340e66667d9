"""What a safetensors file is, from its header alone: no tensor is read, and nothing is ever unpickled."""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from safetensors import safe_open

from chats.pair import PairMetadata, read_header

# An SD or SDXL UNet tells its family by the width of the text it attends to.
UNET_FAMILIES = {768: "SD1.5", 1024: "SD2", 1280: "SDXL refiner", 2048: "SDXL"}
# Parts of a native checkpoint, by key prefix.
CHECKPOINT_PARTS = {
    "denoiser": ("model.diffusion_model.",),
    "VAE": ("first_stage_model.", "vae."),
    "text encoders": ("cond_stage_model.", "conditioner.", "text_encoders."),
}
LORA_ENDINGS = (".lora_down.weight", ".lora_up.weight", ".lora_A.weight", ".lora_B.weight", ".alpha")
DOWN_ENDINGS = (".lora_down.weight", ".lora_A.weight")
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
    lines += [f"  {key}: {_shortened(value)}" for key, value in sorted(metadata.items()) if not key.startswith("chats.")]
    return lines


def read_tensors(path: Path) -> dict[str, TensorInfo]:
    """Shape and dtype of every tensor, by key; the file is one that ``read_header`` has opened before."""
    with safe_open(path, framework="pt") as file:
        slices = {key: file.get_slice(key) for key in file.keys()}  # noqa: SIM118  safe_open is no mapping
        return {key: TensorInfo(tuple(found.get_shape()), found.get_dtype()) for key, found in slices.items()}


def kind(tensors: Tensors) -> str:
    """Family, role and layout in a few words, by key names and shapes."""
    if any(key.endswith(DOWN_ENDINGS) for key in tensors):
        return _lora_kind(tensors)
    prefix = CHECKPOINT_PARTS["denoiser"][0]
    in_checkpoint = any(key.startswith(prefix) for key in tensors)
    bare = {key.removeprefix(prefix): info for key, info in tensors.items() if key.startswith(prefix)} if in_checkpoint else tensors
    found = _denoiser_kind(bare)
    if found is None:
        return "a safetensors file of a kind not known here"
    role = "checkpoint" if _has_part(tensors, "VAE") else "diffusion model"
    markers = [words for key, words in MARKERS.items() if key in bare]
    return f"{found} {role}" + (f", marked {' and '.join(markers)}" if markers else "")


def _denoiser_kind(tensors: Tensors) -> str | None:
    """Family and layout of a denoiser's own keys."""
    if "joint_blocks.0.context_block.attn.qkv.weight" in tensors:
        return "SD3 (native layout)"
    if "double_blocks.0.img_attn.qkv.weight" in tensors:
        return f"Flux.1-{'dev' if 'guidance_in.in_layer.weight' in tensors else 'schnell'} (native layout)"
    if "transformer_blocks.0.attn.add_k_proj.weight" in tensors:
        return f"{'Flux' if 'single_transformer_blocks.0.attn.to_k.weight' in tensors else 'SD3'} (diffusers layout)"
    for beginning, layout in (("input_blocks.", "native layout"), ("down_blocks.", "diffusers layout")):
        keys = (key for key in tensors if key.startswith(beginning) and key.endswith("attn2.to_k.weight"))
        if (key := next(keys, None)) is not None:
            width = tensors[key].shape[-1]
            return f"{UNET_FAMILIES.get(width, f'UNet with text of width {width}')} ({layout})"
    return None


def _lora_kind(tensors: Tensors) -> str:
    """Family, ranks and completeness of a LoRA."""
    downs = {key: info for key, info in tensors.items() if key.endswith(DOWN_ENDINGS)}
    modules = {_module(key) for key in downs}
    ranks = Counter(info.shape[0] for info in downs.values())
    with_alpha = sum(f"{module}.alpha" in tensors for module in modules)
    rank = ", ".join(str(rank) for rank in sorted(ranks))
    style = "kohya keys" if any(key.startswith("lora_") for key in downs) else f"`{next(iter(downs)).partition('.')[0]}.` keys"
    return f"LoRA of rank {rank} for {_lora_family(downs)} ({style}), {len(modules)} modules, {with_alpha} of them with alpha"


def _lora_family(downs: Tensors) -> str:
    names = [key.replace(".", "_") for key in downs]
    if any("single_transformer_blocks" in name or "single_blocks" in name for name in names):
        return "Flux"
    if any("joint_blocks" in name or "transformer_blocks_0_attn_add_k" in name for name in names):
        return "SD3"
    widths = [info.shape[1] for key, info in downs.items() if "attn2_to_k" in key.replace(".", "_")]
    if widths:
        return UNET_FAMILIES.get(widths[0], f"a UNet with text of width {widths[0]}")
    return "SD3 or Flux" if any("transformer_blocks_" in name and "attentions" not in name for name in names) else "a model not known here"


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
    lines = [f"  the {member.member} member of the pair {member.pair_id}"]
    if recommendation := member.recommendation():
        lines.append(f"  sample it with {recommendation}")
    lines += [f"  {key}: {_shortened(value)}" for key, value in sorted(member.to_header().items())]
    return lines


def _shortened(value: str, longest: int = 100) -> str:
    return value if len(value) <= longest else f"{value[:longest]}… ({len(value)} characters)"


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
