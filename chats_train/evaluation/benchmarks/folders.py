"""Pictures that were drawn elsewhere, in a benchmark's own folders, as it judges them.

GenEval's: `<number>/samples/` with a prompt's pictures, beside its `metadata.jsonl`. DPG-Bench's: a picture for each
prompt, named by its `item_id`, which may be a grid of several.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from chats.files import replacing
from chats.locks import locked
from chats.words import shown_error

from ...data.images import DECODE_ERRORS, picture_suffixes
from ...runs.folder import LOCK
from ...runs.peers import Peers, peers_of
from ...runs.processes import Processes
from ...support.digests import file_digest
from ...support.errors import UserError
from ..benchmark import Benchmark, Parts
from ..prompts import EvaluationPrompt, read_prompts
from ..report import NO_FIGURE, as_text, with_error
from ..scorers import BENCHMARK_KINDS, open_scorers
from ..scoring import read_parts, score_pictures
from ..statistics import Estimate, estimate, mean_of, ratio


@dataclass(frozen=True)
class FoundPicture:
    """A picture on the disk. The key is its file's digest and, in a grid, its place."""

    key: str
    path: Path
    prompt: EvaluationPrompt
    seed: int


def score_folder(folder: Path, spec: str, grid: int, output: Path | None) -> list[str]:
    """Judges a folder's pictures; judgements are kept, so it goes on where it was stopped.

    Args:
        spec: a benchmark, as `evaluate` takes it.
        grid: pictures in a row and in a column of each of DPG-Bench's files.
        output: for scores.jsonl and the grids' pictures, by default `scores/` in the folder.

    Returns:
        the report, as lines of text; of several processes, which share the pictures, in the main one alone.

    Raises:
        UserError: for what the user can mend; before anything is judged where that can be told.
    """
    if grid < 1:
        raise UserError(f"`--grid` is {grid}; give 1 for single pictures, or 2 for grids of 2 × 2")
    processes, output = Processes(), output or folder / "scores"
    with peers_of(processes) as peers:
        (scorer,) = open_scorers([spec], processes.device, BENCHMARK_KINDS)
        assert isinstance(scorer, Benchmark)
        with _alone_in(output, peers):
            if scorer.name == "geneval":
                pictures = list(find_geneval(folder))
            else:
                pictures = [_unpacked(row) for row in peers.told(lambda: list(find_dpg(folder, grid, output)))]
            if not any(scorer.applies_to(picture.prompt) for picture in pictures):
                raise UserError(f"`pictures` is {folder}, where {scorer.name} finds none; {WANTED[scorer.name]}")
            scores = score_pictures(scorer, pictures, output, peers)
            if not peers.is_main:
                return []
            return [*scorer.notes, *_table(scorer, pictures, scores, read_parts(scorer, pictures, output))]


WANTED = {
    "geneval": "it wants NUMBER/metadata.jsonl and pictures in NUMBER/samples/",
    "dpg": "it wants pictures named by their prompts, ITEM_ID.png",
}


def find_geneval(folder: Path) -> Iterator[FoundPicture]:
    """The pictures of every prompt, in order."""
    for file in sorted(folder.glob("*/metadata.jsonl")):
        (prompt, *_), _ = read_prompts([file])
        for seed, path in enumerate(_pictures_in(file.parent / "samples")):
            yield FoundPicture(f"{file.parent.name}-{file_digest(path)[:32]}", path, prompt, seed)


def find_dpg(folder: Path, grid: int, output: Path) -> Iterator[list[Any]]:
    """Each picture as JSON holds it (see :func:`_unpacked`), those of grids cut out into ``output``, row by row."""
    for path in _pictures_in(folder):
        name = file_digest(path)[:32]
        if grid == 1:
            yield [f"{path.stem}-{name}", str(path), path.stem, 0]
            continue
        for seed, piece in enumerate(_cut(path, grid, output / "pictures" / f"{path.stem}-{name}")):
            yield [f"{path.stem}-{name}-{grid}-{seed}", str(piece), path.stem, seed]


def _unpacked(row: Sequence[Any]) -> FoundPicture:
    key, path, item, seed = row
    return FoundPicture(key, Path(path), EvaluationPrompt(item, "dpg", {"item_id": item}), seed)


def _pictures_in(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise UserError(f"`pictures`: {folder} is no folder; correct the path")
    suffixes = picture_suffixes()
    return sorted(path for path in folder.iterdir() if path.suffix.lower() in suffixes)


def _cut(path: Path, grid: int, folder: Path) -> list[Path]:
    """A grid's pictures as files, row by row."""
    pieces = [folder / f"{grid}-{number}.png" for number in range(grid * grid)]
    if all(piece.exists() for piece in pieces):
        return pieces
    try:
        with Image.open(path) as opened:
            image = opened.convert("RGB")
    except DECODE_ERRORS as error:
        raise UserError(f"{path} cannot be read as a picture ({shown_error(error)}); draw it again") from error
    if image.width % grid or image.height % grid:
        raise UserError(
            f"`--grid` is {grid}, but {path} has {image.width} × {image.height} pixels, which {grid} does not divide; "
            "correct `--grid`"
        )
    width, height = image.width // grid, image.height // grid
    for number, piece in enumerate(pieces):
        left, top = number % grid * width, number // grid * height
        with replacing(piece) as temporary:
            image.crop((left, top, left + width, top + height)).save(temporary, format="png")
    return pieces


def _table(
    scorer: Benchmark, pictures: Sequence[FoundPicture], scores: dict[str, float], parts: dict[str, Parts]
) -> list[str]:
    """The categories and the overall score in percent, as lines."""
    by_key = {picture.key: (picture.prompt.text, picture.seed) for picture in pictures}
    own = [
        (category, {by_key[key]: each[category] for key, each in parts.items() if category in each})
        for category in scorer.categories
    ]
    categories = [(category, ratio(found) if found else None) for category, found in own]
    known = [each for _, each in categories if each]
    overall = mean_of(known) if scorer.mean_of_categories else estimate({by_key[key]: scores[key] for key in scores})
    rows = [["", "%", "prompts", "pictures"]]
    rows += [_row(name, figure) for name, figure in [*categories, ("overall", overall)]]
    return as_text(rows)


def _row(name: str, figure: Estimate | None) -> list[str]:
    counts = [str(figure.prompts), str(figure.pictures)] if figure else [NO_FIGURE, NO_FIGURE]
    return [name, with_error(figure, factor=100, decimals=2), *counts]


@contextmanager
def _alone_in(output: Path, peers: Peers) -> Iterator[None]:
    """Keeps other commands out of a folder; the main process holds the lock for all."""
    with locked(output / LOCK) if peers.is_main else nullcontext(True) as free:
        if not free:
            raise UserError(f"`--output` is {output}, where another command scores now; wait for its end, or stop it")
        peers.wait()
        yield
