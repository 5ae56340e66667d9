"""Safetensors files from their headers, and tensor by tensor; nothing is ever unpickled."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from chats.words import shown_error

from .errors import UserError

# Of a file that is open, so much may stay in memory.
HELD_BYTES = 1 << 24


@dataclass(frozen=True)
class TensorInfo:
    """One tensor of a header; ``dtype`` is safetensors' name of it, such as F16."""

    shape: tuple[int, ...]
    dtype: str

    @property
    def numbers(self) -> int:
        return math.prod(self.shape)


Tensors = Mapping[str, TensorInfo]


def read_tensors(path: Path, error: type[UserError] = UserError) -> dict[str, TensorInfo]:
    """Shape and dtype of every tensor by key, from the header alone.

    Raises:
        ``error``: when it is no whole safetensors file.
    """
    try:
        with safe_open(path, framework="pt") as file:
            slices = {key: file.get_slice(key) for key in file.keys()}  # noqa: SIM118  safe_open is no mapping
            return {key: TensorInfo(tuple(found.get_shape()), found.get_dtype()) for key, found in slices.items()}
    except SafetensorError as problem:
        raise error(f"{path} is not a whole safetensors file ({shown_error(problem)}); download it again") from problem


class TensorReader:
    """Reads single tensors of a safetensors file in a memory of a few of them.

    What was read of an open file counts as the process's memory until it is closed, so the file is opened anew now and
    then.
    """

    def __init__(self, path: Path):
        self.path = path
        self._file: Any = None
        self._held_bytes = 0

    def read(self, key: str) -> torch.Tensor:
        """One tensor, on the CPU."""
        if self._file is None or self._held_bytes > HELD_BYTES:
            self._file, self._held_bytes = safe_open(self.path, framework="pt"), 0
        tensor: torch.Tensor = self._file.get_tensor(key)
        self._held_bytes += tensor.nbytes
        return tensor
