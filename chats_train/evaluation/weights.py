"""Where a scorer's weights come from: a folder or a hub id, whole safetensors, and a digest of what is read."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ..families.sources import HASHED_SUFFIXES
from ..support.digests import file_digest
from ..support.errors import UserError
from ..support.hub import Wanted, local_or_fetched

FORMS = "a folder or a hub id (owner/name)"
# Whatever is read of a scorer's folder by transformers: on this machine, safetensors, and what was missing.
LOADING: dict[str, Any] = {"local_files_only": True, "use_safetensors": True, "output_loading_info": True}


def open_folder(name: str, source: str, mark: str = "config.json") -> Path:
    """The folder that a source names: one on the disk, or a hub id's, which is then fetched.

    Args:
        name: of the scorer or of its part, as errors call it.
        mark: a file that every such folder has.

    Raises:
        UserError: when it is neither, or cannot be fetched.
    """
    return local_or_fetched(f"`--scorer` {name}", source, Wanted("folder", FORMS, mark, _wanted_files))


def _wanted_files(names: Iterable[str]) -> list[str]:
    return [name for name in names if name.endswith((*HASHED_SUFFIXES, ".jinja"))]


def read_model_config(name: str, folder: Path, wanted: str) -> dict[str, Any]:
    """What a model's config.json says.

    Args:
        wanted: what to give instead, as errors call it.

    Raises:
        UserError: when it is missing or no JSON object.
    """
    file = folder / "config.json"
    if not file.is_file():
        raise UserError(f"`--scorer` {name} is {folder}, which has no config.json; give {wanted}")
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except ValueError:
        config = None
    if not isinstance(config, dict):
        raise UserError(f"`--scorer` {name} is {folder}, whose config.json is no JSON object; give {wanted}")
    return config


def require_safetensors(name: str, folder: Path, note: str = "") -> None:
    """Refuses a folder without safetensors; ``note`` is added to the sentence."""
    if not any(folder.glob("*.safetensors")):
        raise UserError(
            f"`--scorer` {name} is {folder}, which has no .safetensors file; pickled weights are never opened{note}"
        )


def require_whole(name: str, folder: Path, missing: Iterable[str]) -> None:
    """A weight that no file has would be left random, and its scores mean nothing."""
    # Position ids are no weights, and come and go with the version of transformers.
    missing = sorted(key for key in missing if not key.endswith("position_ids"))
    if missing:
        more = f" and {len(missing) - 1} more weights" if len(missing) > 1 else ""
        raise UserError(
            f"`--scorer` {name} is {folder}, whose .safetensors lack {missing[0]}{more}; download or convert it again"
        )


def folder_digest(folder: Path, more: str) -> str:
    """SHA-256 over the files that a scorer reads, and ``more``."""
    files = sorted(path for path in folder.iterdir() if path.suffix in HASHED_SUFFIXES)
    return hashlib.sha256(
        "\n".join([more, *(f"{path.name}:{file_digest(path)}" for path in files)]).encode()
    ).hexdigest()
