"""Where the parts of a base model come from: a diffusers folder, a hub repository, or one native .safetensors
checkpoint.

Only safetensors are opened, never a pickle; nothing is fetched unless the user names a hub repository.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from chats.words import shown_error

from ..settings.facts import SOURCE_FORMS
from ..support.digests import file_digest
from ..support.hub import Wanted, local_or_fetched
from ..support.tensor_files import Tensors
from .scaled_fp8 import FP8, is_weight, scale_of
from .source_error import SourceError
from .weight_files import VARIANTS, WeightFiles, find_weights

Shapes = dict[str, tuple[int, ...]]
HASHED_SUFFIXES = (".safetensors", ".json", ".txt", ".model")
INDEX = "model_index.json"


class Source(ABC):
    """The parts of a base model, each loaded when asked for. A part is named as diffusers names it: `unet`, `vae`, …"""

    @property
    @abstractmethod
    def notes(self) -> list[str]:
        """What is done to the base's weights that its user should know, a sentence each."""

    @abstractmethod
    def require_kind(self) -> None:
        """Raises SourceError when the base is seen to be no such base before any configuration is read."""

    @abstractmethod
    def require_stated_prediction(self) -> None:
        """Raises SourceError when the base says two things of what it predicts."""

    @abstractmethod
    def require_whole(self, classes: Mapping[str, type], denoiser: str) -> None:
        """Raises SourceError, from headers alone, when a part is not whole, or is quantized in a way that is not undone
        here.

        Args:
            classes: of the parts that hold weights.
            denoiser: the part whose weights must be those of its class, one for one.
        """

    @abstractmethod
    def where(self, part: str) -> str:
        """The setting and the file that a part's configuration comes from, `scheduler`'s or :attr:`index`'s, for
        errors."""

    @abstractmethod
    def config(self, part: str) -> dict[str, Any]:
        """The part's configuration."""

    @abstractmethod
    def module(self, part: str, cls: Any, dtype: torch.dtype) -> nn.Module:
        """The part as a fresh module of ``cls``, a class of diffusers or transformers, in eval mode on the CPU.

        Raises:
            SourceError: when the part is missing or not whole.
        """

    @abstractmethod
    def tokenizer(self, part: str) -> Any:
        """A tokenizer of transformers."""

    @abstractmethod
    def shapes(self, part: str) -> Shapes:
        """The shape of each weight by diffusers' key, from headers alone."""

    @abstractmethod
    def digest(self, parts: Iterable[str]) -> str:
        """SHA-256 over the parts' contents, every byte of them: a changed weight, tokenizer or setting changes it."""

    @property
    @abstractmethod
    def index(self) -> dict[str, Any]:
        """What the base says of itself as a whole, beside its parts; a single file says nothing."""

    @property
    @abstractmethod
    def noise(self) -> dict[str, Any]:
        """The configuration of the base's scheduler, as far as the base states one."""

    @property
    @abstractmethod
    def zeros_for_empty_prompt(self) -> bool:
        """Whether the base's null prompt is zeros (SDXL's `force_zeros_for_empty_prompt`)."""


class FolderSource(Source):
    """A diffusers folder.

    Args:
        root: the folder with `model_index.json`.
        setting: the config's name for it, for errors.
    """

    def __init__(self, root: Path, setting: str = "pretrained_model"):
        self.root, self.setting, self._fp8 = root, setting, list[str]()
        if not (root / INDEX).is_file():
            raise SourceError(
                f"`{setting}` is {root}, which has no {INDEX}; give a diffusers folder or a .safetensors file"
            )

    def require_kind(self) -> None:
        pass  # Its configurations say what it is.

    def require_stated_prediction(self) -> None:
        pass  # Its scheduler alone says it.

    def require_whole(self, classes: Mapping[str, type], denoiser: str) -> None:
        for part, cls in classes.items():
            tensors = self._weights(part).tensors()
            self._require_plain(part, tensors)
            if part == denoiser:
                self._require_all(part, cls, tensors)

    @property
    def notes(self) -> list[str]:
        return [f"{part} has fp8 weights, which are taken as they are, as there are no scales" for part in self._fp8]

    def where(self, part: str) -> str:
        if part == INDEX:
            return f"`{self.setting}` {self.root / INDEX}"
        name = "scheduler_config.json" if part == "scheduler" else "config.json"
        return f"`{self.setting}` {self.root / part / name}"

    def config(self, part: str) -> dict[str, Any]:
        return read_json(self._folder(part) / "config.json")

    def module(self, part: str, cls: Any, dtype: torch.dtype) -> nn.Module:
        options: dict[str, Any] = {"local_files_only": True, "use_safetensors": True, "output_loading_info": True}
        options["variant"] = self._weights(part).variant
        # diffusers and transformers spell this option differently.
        options["torch_dtype" if cls.__module__.startswith("diffusers.") else "dtype"] = dtype
        module, report = cls.from_pretrained(self.root, subfolder=part, **options)
        if missing := sorted(report["missing_keys"]):
            # They would be left random.
            raise SourceError(
                f"`{self.setting}` {self.root / part} lacks {len(missing)} weights, the first is `{missing[0]}`; "
                "download it again"
            )
        return module.eval()

    def tokenizer(self, part: str) -> Any:
        from transformers import AutoTokenizer

        return AutoTokenizer.from_pretrained(self._folder(part), local_files_only=True)

    def shapes(self, part: str) -> Shapes:
        return {key: info.shape for key, info in self._weights(part).tensors().items()}

    def digest(self, parts: Iterable[str]) -> str:
        total = hashlib.sha256()
        for part in parts:
            for file in sorted(self._folder(part).iterdir()):
                # A pipe or a device has no end to read to.
                if file.suffix in HASHED_SUFFIXES and file.is_file():
                    total.update(f"{part}/{file.name}:{file_digest(file)}\n".encode())
        return total.hexdigest()

    @property
    def index(self) -> dict[str, Any]:
        return read_json(self.root / INDEX)

    @property
    def noise(self) -> dict[str, Any]:
        file = self.root / "scheduler" / "scheduler_config.json"
        return read_json(file) if file.is_file() else {}

    @property
    def zeros_for_empty_prompt(self) -> bool:
        return self.index.get("force_zeros_for_empty_prompt", True)

    def _folder(self, part: str) -> Path:
        folder = self.root / part
        if not folder.is_dir():
            raise SourceError(
                f"`{self.setting}` is {self.root}, which has no folder `{part}`; give a whole folder of this family"
            )
        return folder

    def _weights(self, part: str) -> WeightFiles:
        return find_weights(self._folder(part))

    def _require_plain(self, part: str, tensors: Tensors) -> None:
        """Weights that are their own numbers: diffusers knows nothing of scales beside them."""
        if scale_of(tensors, f"`{self.setting}` {self.root / part}") or not all(map(is_weight, tensors)):
            raise SourceError(
                f"`{self.setting}` {self.root / part} has scaled fp8 weights, which are read from single files only; "
                "give the folder in fp16, bf16 or fp32"
            )
        if any(info.dtype in FP8 for info in tensors.values()):
            self._fp8.append(part)

    def _require_all(self, part: str, cls: Any, tensors: Tensors) -> None:
        try:
            wanted = empty_shapes(cls, self.config(part))
        except (ValueError, TypeError, LookupError, AttributeError) as error:
            raise SourceError(
                f"{self.where(part)} makes no {cls.__name__} ({shown_error(error)}); download it again"
            ) from error
        held = {key: info.shape for key, info in tensors.items()}
        if differing := sorted(key for key in wanted.keys() | held.keys() if wanted.get(key) != held.get(key)):
            key = differing[0]
            raise SourceError(
                f"`{self.setting}` {self.root / part} has {len(differing)} weights that do not fit its config.json, "
                f"the first is `{key}` ({_shape(held.get(key))} instead of {_shape(wanted.get(key))}); download it "
                "again"
            )


def empty_shapes(cls: Any, config: Mapping[str, Any]) -> Shapes:
    """The shape of each weight of diffusers' class under a configuration; nothing is allocated."""
    from accelerate import init_empty_weights

    with init_empty_weights(include_buffers=True):
        module = cls.from_config(config)
    return {key: tuple(value.shape) for key, value in module.state_dict().items()}


def _shape(shape: tuple[int, ...] | None) -> str:
    return "none" if shape is None else str(list(shape))


def open_folder(source: str, setting: str, parts: Iterable[str]) -> FolderSource:
    """A diffusers folder by its path, or by a hub id, whose files of ``parts`` are then fetched.

    Raises:
        SourceError: when it is neither, or cannot be fetched.
    """
    wanted = Wanted("diffusers folder", SOURCE_FORMS[setting], INDEX, partial(wanted_files, parts=parts))
    return FolderSource(local_or_fetched(f"`{setting}`", source, wanted, SourceError), setting)


def wanted_files(names: Iterable[str], parts: Iterable[str]) -> list[str]:
    """Of a repository's files those that training reads: the parts' configs, tokenizers and safetensors, one precision
    of each."""
    parts = {*parts, "scheduler"}
    inside = [
        name
        for name in names
        if name.count("/") == 1 and name.split("/")[0] in parts and name.endswith(HASHED_SUFFIXES)
    ]
    variant = re.compile(r"\.(fp16|bf16|non_ema|onnx|flax)\b")
    weights = [name for name in inside if name.endswith(".safetensors")]
    found = {(name.split("/")[0], match[1] if (match := variant.search(name)) else "") for name in weights}

    def is_wanted(name: str) -> bool:
        part, match = name.split("/")[0], variant.search(name)
        chosen = next((known for known in VARIANTS if (part, known) in found), "")
        return match is None or match[1] == chosen

    return [INDEX, *filter(is_wanted, inside)]


def read_json(path: str | os.PathLike[str]) -> dict[str, Any]:
    """One JSON file, or a SourceError that names it."""
    try:
        return dict(json.loads(Path(path).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise SourceError(
            f"{os.fspath(path)} cannot be read ({shown_error(error)}); the folder is not whole, download it again"
        ) from error


def parameter_count(shapes: Mapping[str, tuple[int, ...]]) -> int:
    """How many numbers the weights of ``shapes`` hold."""
    return sum(torch.Size(shape).numel() for shape in shapes.values())
