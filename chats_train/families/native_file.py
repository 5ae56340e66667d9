"""One native checkpoint by its header: how it is cut into parts, and what its marks and dtypes say that it is."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from chats.words import shown

from ..layouts.recognition import CHECKPOINT_PARTS, EDM_MARKS, PREDICTION_MARKS, denoiser_kind, other_input
from ..settings.family_facts import FamilyFacts
from ..support.errors import UserError
from ..support.gguf import read_gguf
from ..support.tensor_files import TensorInfo, read_tensors
from .scaled_fp8 import FP8, dequantized, is_weight, scale_of
from .source_error import SourceError

FOREIGN = tuple(prefix for part, prefixes in CHECKPOINT_PARTS.items() if part != "denoiser" for prefix in prefixes)
# What headers say of v-prediction: sd-scripts' word, and ComfyUI's.
PREDICTION_KEYS = ("modelspec.prediction_type", "modelspec.predict_key")


class NativeFile:
    """A .safetensors file in the native layout of a family.

    Args:
        path: the file.
        facts: of the family; its ``prefixes`` say how the file is cut into parts.

    Attributes:
        held: shape and dtype of every tensor, by the file's own key.

    Raises:
        SourceError: when it is no whole safetensors file.
    """

    def __init__(self, path: Path, facts: FamilyFacts):
        self.path, self.facts = path, facts
        if path.suffix != ".safetensors":
            raise SourceError(_refusal(path))
        self.held = read_tensors(path, SourceError)

    def __str__(self) -> str:
        return f"`pretrained_model` {self.path.name}"

    def prefix(self, part: str) -> str:
        """Of a part's keys; a file with nothing but the denoiser often has none."""
        prefix = self.facts.prefixes[part]
        return prefix if part != self.facts.denoiser_part or any(key.startswith(prefix) for key in self.held) else ""

    def weights(self, part: str) -> dict[str, TensorInfo]:
        """A part's weights by key, prefix removed; marks and what belongs to quantization are none."""
        marks = {*PREDICTION_MARKS, *EDM_MARKS}
        return {key: info for key, info in self._held(part).items() if is_weight(key) and key not in marks}

    def scales(self, part: str) -> dict[str, str]:
        """The key of the scale of each weight of a part that has one.

        Raises:
            SourceError: for weights that are quantized in a way that is not undone here.
        """
        return scale_of(self._held(part), str(self))

    def read(self, part: str) -> dict[str, Tensor]:
        """A part's tensors as they are in the file, scales among them."""
        prefix = self.prefix(part)
        with safe_open(self.path, framework="pt") as file:
            return {key: file.get_tensor(prefix + key) for key in sorted(self._held(part))}

    def read_whole(self, part: str, dtype: torch.dtype) -> dict[str, Tensor]:
        """A part's weights as the numbers that they stand for."""
        tensors, scales = self.read(part), self.scales(part)
        return {
            key: (dequantized(tensors[key], tensors[scales[key]]) if key in scales else tensors[key]).to(dtype)
            for key in self.weights(part)
        }

    def is_marked(self, mark: str) -> bool:
        """Whether the file has a mark: at its root, where ComfyUI's checkpoint loader looks, or below the denoiser's
        prefix, where its loader of diffusion models does."""
        return mark in self.held or self.prefix(self.facts.denoiser_part) + mark in self.held

    def require_kind(self) -> None:
        """Raises SourceError for a denoiser of another family or layout, of other noise, or with more inputs."""
        denoiser = self.weights(self.facts.denoiser_part)
        found = denoiser_kind(denoiser)
        if found is not None and found.layout != "native":
            raise SourceError(f"{self} is {found}; give the whole diffusers folder that it is from, or a native file")
        is_other = found.family not in (None, self.facts.name) if found else bool(self.facts.marks.native)
        if is_other:
            raise SourceError(
                f"{self} is {found or 'of a kind not known here'}, and `family` is {self.facts.name}; correct `family`"
            )
        if edm := next((mark for mark in EDM_MARKS if self.is_marked(mark)), None):
            raise SourceError(
                f"{self} is marked `{edm}` ({EDM_MARKS[edm]}), and noise in those scales is not trained here; give the "
                f"{self.facts.title} base that it was made from"
            )
        self.scales(self.facts.denoiser_part)
        if more := other_input(denoiser):
            raise SourceError(f"{self} has {more}; give the {self.facts.title} base that it was made from")

    def require_stated_prediction(self) -> None:
        """Raises SourceError where the header says v-prediction and no mark does, so that ComfyUI takes it for
        epsilon."""
        with safe_open(self.path, framework="pt") as file:
            metadata = file.metadata() or {}
        said = next((key for key in PREDICTION_KEYS if metadata.get(key) in ("v", "v_prediction")), None)
        if said is not None and not self.is_marked("v_pred"):
            raise SourceError(
                f"{self}: its header says `{said}` {shown(metadata[said])}, but there is no `v_pred` tensor, without "
                "which ComfyUI takes it for epsilon; set `prediction_type` to what it is"
            )

    def notes(self) -> list[str]:
        """What is done to the file's weights, a sentence each."""
        part = self.facts.denoiser_part
        if not any(info.dtype in FP8 for info in self.weights(part).values()):
            return []
        done = "multiplied by their scales" if self.scales(part) else "taken as they are, as there are no scales"
        return [f"{self.path.name} has fp8 weights, which are {done}"]

    def _held(self, part: str) -> dict[str, TensorInfo]:
        prefix = self.prefix(part)
        return {
            key[len(prefix) :]: info
            for key, info in self.held.items()
            if key.startswith(prefix) and (prefix or not key.startswith(FOREIGN))
        }


def _refusal(path: Path) -> str:
    try:
        is_gguf = read_gguf(path) is not None
    except UserError:
        is_gguf = True
    if is_gguf:
        return (
            f"`pretrained_model` {path.name} is a GGUF file, which is not read here; give the .safetensors file "
            "that it was made from"
        )
    return f"{path.name} is a file that can run code when it is opened; convert it to .safetensors first"
