"""The file of a distilled LoRA in ComfyUI's `loras`."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import folder_paths

from ...chats.distilled import DistilledMetadata
from ...chats.pair import PairError, read_header, write_member
from .adapters import STUDENT, lora_file
from .saved_run import SavedRun
from .writing import writing
from .written_pair import FOLDER, facts_sha256, modelspec, require_own, weights


def lora_path(name: str) -> Path:
    """Where a distilled LoRA is written."""
    return Path(folder_paths.get_folder_paths(FOLDER)[0]) / f"{name}.safetensors"


@dataclass(frozen=True)
class DistilledFile:
    """The file of a run.

    Attributes:
        described: what it says of itself, but for the step.
    """

    name: str
    described: DistilledMetadata

    def require_free(self, step: int) -> None:
        """Raises RunError where somebody else's file is there. One of more steps cannot be: a run's are fixed."""
        path = lora_path(self.name)
        if path.exists():
            stated = _stated(path)
            require_own(self.name, path, stated is not None and self._is_own(stated))

    def write(self, run: SavedRun) -> bool:
        """Writes it, whole or not at all, where it is not there as it should be; whether it was not.

        Raises:
            NotWritten: when the disk does not take it; the run's state is kept.
            RunError: where somebody else has made such a file meanwhile.
        """
        self.require_free(run.step)
        path, metadata = lora_path(self.name), dataclasses.replace(self.described, step=run.step)
        if path.exists() and _stated(path) == metadata:
            return False
        with writing(path.parent):
            title = modelspec(path.stem, metadata.resolution)
            write_member(path, lora_file(weights(run), STUDENT), metadata, title)
        return True

    def _is_own(self, stated: DistilledMetadata) -> bool:
        return stated.settings_sha256 == self.described.settings_sha256


def settings_sha256(facts: dict[str, Any], dataset: str) -> str:
    """Digest of all that a run was begun with, its data set's name too, hexadecimal."""
    return facts_sha256({**facts, "dataset_name": dataset})


def _stated(path: Path) -> DistilledMetadata | None:
    try:
        return DistilledMetadata.from_header(read_header(path), path.name)
    except PairError:
        return None
