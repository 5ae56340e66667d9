"""The rated data sets in ComfyUI's output folder, each opened once."""

import threading
from pathlib import Path

import folder_paths

from ...chats.taste.dataset import TasteDataset
from ...chats.taste.names import TasteError, check_name

DEFAULT_RATER = "default"
# Where data sets are, within the output folder.
PLACE = "chats"

_opened: dict[Path, TasteDataset] = {}
_lock = threading.Lock()


def place() -> Path:
    return Path(folder_paths.get_output_directory()) / PLACE


def data_set(name: str) -> TasteDataset:
    """The data set of a name, whether it is there or not.

    Raises:
        TasteError: for a name that none can have.
    """
    folder = place() / check_name(name)
    with _lock:
        if folder not in _opened:
            _opened[folder] = TasteDataset(folder)
        return _opened[folder]


def names() -> list[str]:
    """The data sets that are there, the one that was worked on last first."""
    found = []
    for folder in place().iterdir() if place().is_dir() else ():
        try:
            one = data_set(folder.name)
        except TasteError:
            continue  # a folder that is somebody else's
        if one.exists():
            found.append((one.changed(), folder.name))
    return [name for _, name in sorted(found, reverse=True)]
