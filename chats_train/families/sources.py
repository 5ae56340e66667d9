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
from pathlib import Path
from typing import Any

import torch
from torch import nn

from chats.words import shown_error

from ..support.digests import file_digest
from ..support.errors import UserError
from ..support.tensor_files import read_tensors

Shapes = dict[str, tuple[int, ...]]
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
HASHED_SUFFIXES = (".safetensors", ".json", ".txt", ".model")


class SourceError(UserError):
    """A base model that cannot be used; the message is one sentence that names the setting and the way out."""


class Source(ABC):
    """The parts of a base model, each loaded when asked for. A part is named as diffusers names it: `unet`, `vae`, …"""

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
    def noise(self) -> dict[str, Any]:
        """`prediction_type` and `rescale_betas_zero_snr`, as far as the base states them."""

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
        self.root, self.setting = root, setting
        if not (root / "model_index.json").is_file():
            raise SourceError(
                f"`{setting}` is {root}, which has no model_index.json; give a diffusers folder or a .safetensors file"
            )

    def config(self, part: str) -> dict[str, Any]:
        return read_json(self._folder(part) / "config.json")

    def module(self, part: str, cls: Any, dtype: torch.dtype) -> nn.Module:
        files = self._weights(part)
        options: dict[str, Any] = {"local_files_only": True, "use_safetensors": True}
        if variant := re.search(r"\.(fp16|bf16)\b", files[0].name):
            options["variant"] = variant.group(1)
        # diffusers and transformers spell this option differently.
        options["torch_dtype" if cls.__module__.startswith("diffusers.") else "dtype"] = dtype
        module: nn.Module = cls.from_pretrained(self.root, subfolder=part, **options)
        return module.eval()

    def tokenizer(self, part: str) -> Any:
        from transformers import AutoTokenizer

        return AutoTokenizer.from_pretrained(self._folder(part), local_files_only=True)

    def shapes(self, part: str) -> Shapes:
        return {
            key: info.shape for file in self._weights(part) for key, info in read_tensors(file, SourceError).items()
        }

    def digest(self, parts: Iterable[str]) -> str:
        total = hashlib.sha256()
        for part in parts:
            for file in sorted(self._folder(part).iterdir()):
                # A pipe or a device has no end to read to.
                if file.suffix in HASHED_SUFFIXES and file.is_file():
                    total.update(f"{part}/{file.name}:{file_digest(file)}\n".encode())
        return total.hexdigest()

    @property
    def noise(self) -> dict[str, Any]:
        file = self.root / "scheduler" / "scheduler_config.json"
        return read_json(file) if file.is_file() else {}

    @property
    def zeros_for_empty_prompt(self) -> bool:
        return read_json(self.root / "model_index.json").get("force_zeros_for_empty_prompt", True)

    def _folder(self, part: str) -> Path:
        folder = self.root / part
        if not folder.is_dir():
            raise SourceError(
                f"`{self.setting}` is {self.root}, which has no folder `{part}`; give a whole folder of this family"
            )
        return folder

    def _weights(self, part: str) -> list[Path]:
        """The safetensors files of a part: those of full precision, else one variant."""
        files = sorted(file for file in self._folder(part).glob("*.safetensors") if file.is_file())
        plain = [file for file in files if not re.search(r"\.(fp16|bf16|non_ema)\b", file.name)]
        if not files:
            raise SourceError(
                f"{self.root / part} has no .safetensors file; pickled weights (.bin) are never opened, convert them "
                "first"
            )
        return plain or [file for file in files if file.name.split(".")[1] == files[0].name.split(".")[1]]


def open_folder(source: str, setting: str, parts: Iterable[str]) -> FolderSource:
    """A diffusers folder by its path, or by a hub id, whose files of ``parts`` are then fetched.

    Raises:
        SourceError: when it is neither.
    """
    path = Path(source).expanduser()
    if path.is_dir():
        return FolderSource(path, setting)
    if path.exists() or not HUB_ID.fullmatch(source):
        raise SourceError(
            f"`{setting}` is `{source}`, which is no diffusers folder and no hub id (owner/name); correct the path"
        )
    from huggingface_hub import list_repo_files, snapshot_download

    return FolderSource(
        Path(snapshot_download(source, allow_patterns=wanted_files(list_repo_files(source), parts))), setting
    )


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
    full = {name.split("/")[0] for name in inside if name.endswith(".safetensors") and not variant.search(name)}
    wanted = [
        name for name in inside if not variant.search(name) or (name.split("/")[0] not in full and ".fp16" in name)
    ]
    return ["model_index.json", *wanted]


def read_json(path: str | os.PathLike[str]) -> dict[str, Any]:
    """One JSON file, or a SourceError that names it."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise SourceError(
            f"{os.fspath(path)} cannot be read ({shown_error(error)}); the folder is not whole, download it again"
        ) from error


def parameter_count(shapes: Mapping[str, tuple[int, ...]]) -> int:
    """How many numbers the weights of ``shapes`` hold."""
    return sum(torch.Size(shape).numel() for shape in shapes.values())
