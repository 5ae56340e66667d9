"""The pairs of a start in a file that others map into their memory: the next start of unchanged data, and the other
processes of this one."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..settings.config import RunConfig
from ..support.errors import UserError
from .pair_columns import PairColumns, read_columns
from .pairs import FileImage, ImageBytes, Opening, Problem
from .records import RECORDS_VERSION

# Raise it when pairs are listed otherwise than before from the same images.
LISTING_VERSION = 2
FOLDER, SUFFIX = "pairs", ".arrow"
# Of other settings or other states of the data; a large one takes 300 MB.
MOST_LISTINGS = 3
FILES, TABLE = "files", "table"
ABANDONED_SECONDS = 3600.0


@dataclass(frozen=True)
class Listed:
    """The usable pairs of a source, what is wrong with others, its ties and remarks, and how many images were looked
    at."""

    samples: PairColumns
    problems: Sequence[Problem]
    ties: int
    remarks: Sequence[str]
    images: int


class Listing:
    """Where the checked pairs of a source are kept, under a digest of all that they follow from.

    Args:
        opening: the source; where its ``state`` is None, nothing is kept.
        config: the run.
    """

    def __init__(self, opening: Opening, config: RunConfig):
        self._image = opening.image
        self._path = (
            None if opening.state is None else config.cache_dir / FOLDER / f"{_key(opening.state, config)}{SUFFIX}"
        )

    def read(self) -> Listed | None:
        """What an earlier start found."""
        if self._path is None or (found := read_columns(self._path, self._image)) is None:
            return None
        columns, facts = found
        try:
            problems = [Problem(*each) for each in json.loads(facts["problems"])]
            remarks = [str(each) for each in json.loads(facts["remarks"])]
            return Listed(columns, problems, int(facts["ties"]), remarks, int(facts["images"]))
        except (ValueError, TypeError, KeyError):
            return None

    def write(self, listed: Listed) -> None:
        """Keeps it, and the latest of others."""
        if self._path is None:
            return
        problems = [[problem.kind, problem.name, problem.detail] for problem in listed.problems]
        facts = {
            "problems": json.dumps(problems),
            "ties": str(listed.ties),
            "remarks": json.dumps(list(listed.remarks)),
            "images": str(listed.images),
        }
        try:
            listed.samples.write(self._path, facts)
        except OSError as error:
            raise UserError(
                f"{self._path.parent} cannot be written to ({error}); make room, or set `cache_dir` to another disk"
            ) from error
        listings = sorted(self._path.parent.glob(f"*{SUFFIX}"), key=lambda path: path.stat().st_mtime)
        for path in listings[:-MOST_LISTINGS]:
            path.unlink(missing_ok=True)


def _key(state: str, config: RunConfig) -> str:
    buckets = [config.enable_bucket, config.bucket_reso_steps, config.min_bucket_reso, config.max_bucket_reso]
    columns = config.data.columns.model_dump()
    facts = [LISTING_VERSION, RECORDS_VERSION, state, config.data.max_pairs, config.resolution, buckets, columns]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:32]


def handed_over(folder: Path, number: int) -> Path:
    """Where the main process of a run leaves the pairs for the others, by a number that no other run has."""
    return folder / f".pairs-{number:016x}{SUFFIX}"


def hand_over(columns: PairColumns, name: str, path: Path) -> None:
    """Writes the pairs and the data set's name for :func:`taken_over`, and removes what runs that were killed left."""
    for left in path.parent.glob(f".pairs-*{SUFFIX}"):
        if time.time() - left.stat().st_mtime > ABANDONED_SECONDS:
            left.unlink(missing_ok=True)
    columns.write(path, {"name": name, "form": FILES if columns.image is FileImage else TABLE})


def taken_over(path: Path, image: Callable[[str], ImageBytes]) -> tuple[PairColumns, str] | None:
    """The pairs of the main process and the data set's name; None where that has another disk.

    Args:
        path: what :func:`hand_over` wrote.
        image: makes an image of a table of its place.
    """
    if (found := read_columns(path, image)) is None:
        return None
    columns, facts = found
    if facts["form"] == FILES:
        columns.image = FileImage
    return columns, facts["name"]
