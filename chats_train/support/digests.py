"""Digests of files."""

from __future__ import annotations

import hashlib
from pathlib import Path

READ_BYTES = 1 << 22


def file_digest(path: Path) -> str:
    """SHA-256 of a file, hexadecimal."""
    total = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(READ_BYTES):
            total.update(chunk)
    return total.hexdigest()
