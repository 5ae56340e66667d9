"""What a GGUF file says of itself at its beginning: ComfyUI's other format of quantized models, which is not read
here."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from .errors import UserError

MAGIC = b"GGUF"
ARCHITECTURE = "general.architecture"
STRING = 8
# Bytes of a value of each plain type: 8 to 64 bits of integers, floats and booleans, by GGUF's numbers.
WIDTHS = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
# Nothing that is looked for is longer, and it stands among the first.
LONGEST, MOST_KEYS = 1000, 20


@dataclass(frozen=True)
class GgufHeader:
    """Version and number of tensors; the architecture where it stands among the first keys."""

    version: int
    tensors: int
    architecture: str | None


def read_gguf(path: Path) -> GgufHeader | None:
    """The header of a GGUF file; None for any other.

    Raises:
        UserError: when it is cut off.
    """
    with path.open("rb") as file:
        if file.read(len(MAGIC)) != MAGIC:
            return None
        try:
            version, tensors, keys = struct.unpack("<IQQ", file.read(20))
        except struct.error as error:
            raise UserError(f"{path} is a GGUF file that is cut off; download it again") from error
        return GgufHeader(version, tensors, _architecture(file, min(keys, MOST_KEYS)))


def _architecture(file: BinaryIO, keys: int) -> str | None:
    """The architecture, which writers put first; None past an array or what is damaged."""
    try:
        for _ in range(keys):
            key = _text(file)
            (kind,) = struct.unpack("<I", file.read(4))
            value = _text(file) if kind == STRING else file.read(WIDTHS[kind])
            if key == ARCHITECTURE and isinstance(value, str):
                return value
    except (struct.error, KeyError, ValueError):
        pass
    return None


def _text(file: BinaryIO) -> str:
    (length,) = struct.unpack("<Q", file.read(8))
    if length > LONGEST:
        raise ValueError("a text that is no architecture")
    return file.read(length).decode("utf-8")
