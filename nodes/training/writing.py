"""What the disk refuses, as a sentence: also where safetensors says it, whose error is no OSError."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from ...chats.taste.disk import on_disk
from ...chats.words import shown_error


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Within the block, files are written into ``folder``.

    Raises:
        NotWritten: in place of an OSError or a SafetensorError.
    """
    with on_disk(folder):
        try:
            yield
        except SafetensorError as error:
            raise OSError(shown_error(error)) from error
