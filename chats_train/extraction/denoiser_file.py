"""One file's denoiser under its native names, read a weight at a time, whatever the layout of the file."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path

from torch import Tensor

from chats.pair import read_header
from chats.words import shown

from ..families.single_file import CheckpointSource
from ..layouts.formats import file_format
from ..layouts.places import Place, to_native
from ..layouts.recognition import DenoiserKind, denoiser_kind, is_lora
from ..layouts.unet import unet_layout
from ..settings.facts import FAMILIES
from ..support.digests import file_digest
from ..support.errors import UserError
from ..support.tensor_files import TensorReader, Tensors, read_tensors

# Where a denoiser begins in a native file, in the order in which ComfyUI looks; a bare one has no prefix.
PREFIXES = ("model.diffusion_model.", "model.model.", "net.", "model.")
# A quantized weight is not its own numbers: scales lie elsewhere in the file.
QUANTIZED = re.compile(r"(F8|F4|F6|I8|U8|I4|U4)")
FLOATS = ("F64", "F32", "F16", "BF16")
# Newer ComfyUI saves these norms of Flux and Chroma under `weight`, the published files have `scale`.
FLUX_NORM = re.compile(
    r"((?:double|single)_blocks\.\d+\..*norm\.(?:query|key)_norm|distilled_guidance_layer\.norms\.\d+)\.weight"
)
# Parameters of other kinds of adapters, which are no whole models either.
ADAPTER = re.compile(r"\.(hada_w\d_a|lokr_w\d|lora_mid|oft_blocks|lora\.(up|down)\.weight)|_lora\.(up|down)\.weight")


class DenoiserFile:
    """The denoiser of a whole checkpoint, of a bare native file of any architecture, or of a diffusers-format file.

    A diffusers file is seen through the layout that export writes, so fused weights (q, k, v) come fused.

    Args:
        path: the .safetensors file.
        setting: the argument that named it, for errors.

    Attributes:
        shapes: shape by native key; empty tensors, which are marks and no weights, are left out.
        kind: what it is, where that is known.
        header: the file's metadata.

    Raises:
        PairError, UserError: a file that cannot be read, or that holds no whole denoiser in plain numbers.
    """

    def __init__(self, path: Path, setting: str):
        self.path, self.setting = path, setting
        self.header = read_header(path)
        self._reader = TensorReader(path)
        tensors = read_tensors(path)
        if is_lora(tensors) or any(ADAPTER.search(key) for key in tensors):
            raise UserError(
                f"`{setting}` is {path.name}, which is a LoRA; give the whole model that it was merged into"
            )
        prefix = next((prefix for prefix in PREFIXES if any(key.startswith(prefix) for key in tensors)), "")
        held = {key[len(prefix) :]: info for key, info in tensors.items() if key.startswith(prefix) and info.numbers}
        self.kind = denoiser_kind(held)
        self._require_numbers(held)
        self._parts = self._find_places(held, prefix)
        self._floating = {
            key for key, parts in self._parts.items() if all(tensors[name].dtype in FLOATS for name in parts)
        }
        self.shapes = {key: self._shape(key, parts, tensors) for key, parts in self._parts.items()}

    def read(self, key: str) -> Tensor:
        """One weight by its native key, in the file's own precision; what is no float comes as one."""
        parts = self._parts[key]
        tensor = to_native({name: self._reader.read(name) for name in parts}, parts)[key]
        return tensor if self.is_floating(key) else tensor.double()

    def is_floating(self, key: str) -> bool:
        """Whether a weight is a number that can have a difference: not an index, not a flag."""
        return key in self._floating

    @cached_property
    def digest(self) -> str:
        """SHA-256 that says which weights these are: as the trainer computes it of a base where it could train on this
        file, else of the whole file."""
        family = self.kind.family if self.kind and self.kind.layout == "native" else None
        if family is None or self.path.suffix != ".safetensors":
            return file_digest(self.path)
        facts = FAMILIES[family]
        return CheckpointSource(self.path, facts).digest([facts.denoiser_part])

    def __str__(self) -> str:
        return f"{self.path.name} ({self.kind.words if self.kind else 'a model of a kind not known here'})"

    def _require_numbers(self, held: Tensors) -> None:
        for key, info in held.items():
            if QUANTIZED.match(info.dtype):
                raise UserError(
                    f"`{self.setting}` is {self.path.name}, whose `{shown(key, 60)}` is quantized ({info.dtype}); "
                    "give the file in fp16, bf16 or fp32 "
                    "that it was made from"
                )

    def _find_places(self, held: Tensors, prefix: str) -> dict[str, dict[str, Place]]:
        """Native key → the file's own keys that it is made of, with their places."""
        if self.kind is not None and self.kind.layout == "diffusers":
            places = self._layout_places(held, self.kind)
        else:
            places = {key: Place(FLUX_NORM.sub(r"\1.scale", key)) for key in held}
        parts: dict[str, dict[str, Place]] = {}
        for key, place in places.items():
            parts.setdefault(place.key, {})[prefix + key] = place
        return parts

    def _layout_places(self, held: Tensors, kind: DenoiserKind) -> Mapping[str, Place]:
        # The UNets without a family here (SD2, SDXL's refiner) are named by the same rules as those with one.
        layout = file_format(kind.family).layout if kind.family else unet_layout
        places = layout(held)
        if lost := [key for key in held if key not in places]:
            raise UserError(
                f"`{self.setting}` is {self}, and its `{shown(lost[0])}` ({len(lost)} such) has no native name known "
                "here; "
                "give the model in its native layout"
            )
        return places

    def _shape(self, key: str, parts: Mapping[str, Place], tensors: Tensors) -> tuple[int, ...]:
        place = next(iter(parts.values()))
        whole = place.parts
        if len(parts) != whole:
            raise UserError(
                f"`{self.setting}` is {self.path.name}, where `{shown(key)}` has {len(parts)} of its {whole} parts; "
                "download the file again"
            )
        first, *_ = shapes = [tensors[name].shape for name in parts]
        if place.flattened:
            return (math.prod(first),)
        return (sum(shape[0] for shape in shapes), *first[1:]) if whole > 1 else first
