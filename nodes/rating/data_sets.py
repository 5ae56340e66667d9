"""The rated data sets in ComfyUI's output folder, each opened once."""

import contextlib
import threading
from collections.abc import Iterator
from pathlib import Path

import folder_paths

from ...chats.taste.dataset import TasteDataset
from ...chats.taste.names import NotThere, TasteError, check_name

DEFAULT_RATER = "default"
# Where data sets are, within the output folder.
PLACE = "chats"

_opened: dict[Path, TasteDataset] = {}
_lock = threading.Lock()


@contextlib.contextmanager
def plain_refusals() -> Iterator[None]:
    """Within the block, what a node refuses is a ValueError and nothing more special: ComfyUI's error dialog has the
    error's type for a title, with the whole path of the module where the type is a pack's own."""
    try:
        yield
    except ValueError as error:
        if type(error) is ValueError:
            raise
        raise ValueError(str(error)) from error


def place() -> Path:
    return Path(folder_paths.get_output_directory()) / PLACE


def data_set(name: str) -> TasteDataset:
    """The data set of a name, whether it is there or not.

    Raises:
        TasteError: for a name that none can have.
        NotThere: for one that is another's but for the case of its letters.
    """
    folder = place() / check_name(name)
    _refuse_other_case(name)
    return _opened_at(folder)


def _refuse_other_case(name: str) -> None:
    """Refuses what Windows and macOS take for the folder of another name: a data set is to be copied there whole."""
    there = [folder.name for folder in _folders()]
    same = [other for other in there if other.lower() == name.lower()]
    if same and name not in same:
        raise NotThere(
            "otherCase",
            "`dataset` is `{name}`, and there is `{other}`, which is the same folder on Windows and macOS; write it as "
            "`{other}`, or choose another name",
            name=name,
            other=same[0],
        )


def _folders() -> list[Path]:
    return list(place().iterdir()) if place().is_dir() else []


def _opened_at(folder: Path) -> TasteDataset:
    with _lock:
        if folder not in _opened:
            _opened[folder] = TasteDataset(folder)
        return _opened[folder]


def names() -> list[str]:
    """The data sets that are there, the one that was worked on last first."""
    found = []
    for folder in _folders():
        try:
            one = _opened_at(place() / check_name(folder.name))
        except TasteError:
            continue  # a folder that is somebody else's
        if one.exists():
            found.append((one.changed(), folder.name))
    return [name for _, name in sorted(found, reverse=True)]
