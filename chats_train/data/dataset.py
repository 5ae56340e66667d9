"""Which form of pairs a folder holds, told and opened; every image checked, every problem counted and listed.

What each form may hold: ``folders.py`` (metadata.jsonl, chosen/ and rejected/) and ``tables.py`` (parquet, the hub).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property
from pathlib import Path

from chats.draws import fingerprint
from chats.taste.names import CANDIDATES
from chats.words import shown

from ..settings.config import RunConfig
from ..support.amounts import counted
from ..support.errors import UserError
from .checks import check_pairs
from .folders import METADATA, metadata_folder, two_folders
from .listing import Listed, Listing, taken_over
from .pair_columns import PairColumns
from .pairs import LONGEST_DETAIL, ImageBytes, LazyPairs, Opening, PairSource, Problem, opening_of
from .rated import rated_folder, rated_near
from .summary import buckets_of, enlarged, near_duplicates
from .tables import PARQUET, hub, parquet
from .verdicts import Verdicts

LISTED_PROBLEMS, LISTED_FOLDERS = 10, 5


@dataclass(frozen=True)
class PairDataset:
    """The usable pairs of a run, in the order of their source, and what was wrong with the others.

    ``ties`` were left out as they state no preference. A pair in ``problems`` is not among the samples, unless its kind
    is "size mismatch": such a pair is usable, cropped to one bucket. ``remarks`` are lines on the files that were read
    and left out.
    """

    name: str
    samples: PairColumns
    problems: tuple[Problem, ...]
    ties: int
    remarks: tuple[str, ...] = ()

    @cached_property
    def fingerprint(self) -> str:
        """Digest of the pairs' contents, whatever their order: ``chats.dataset_fingerprint`` of the pair's metadata."""
        return fingerprint(self.samples.ids)

    def report(self) -> list[str]:
        """What a user wants to know, a line each: counts, buckets, and the first problems by name."""
        lines = [f"{self.name}: {len(self.samples)} pairs" + (f", {self.ties} ties left out" if self.ties else "")]
        lines += [f"  {bucket.width} × {bucket.height}: {count}" for bucket, count in buckets_of(self.samples)]
        if small := enlarged(self.samples):
            lines.append(f"  {small} pairs have an image smaller than its bucket, which is enlarged")
        lines += [f"  {line}" for line in (*near_duplicates(self.samples), *self.remarks)]
        counts = Counter(problem.kind for problem in self.problems)
        lines += [f"  {kind}: {count}" for kind, count in counts.most_common()]
        lines += [f"    {problem}" for problem in self.problems[:LISTED_PROBLEMS]]
        if len(self.problems) > LISTED_PROBLEMS:
            lines.append(f"    and {len(self.problems) - LISTED_PROBLEMS} more")
        return lines


def open_dataset(config: RunConfig, progress: bool = True) -> PairDataset:
    """Opens the pairs of a config and looks at every image.

    What was found of an image is kept in ``cache_dir`` (:class:`.verdicts.Verdicts`), so that one whose file has the
    size and times of before is not read again, unless ``data.checksum`` is set.

    Raises:
        UserError: when the source cannot be used, no pair is usable, or there is any problem and ``data.strict`` is
            set.
    """
    opening = _opening(config)
    listing = Listing(opening, config)
    listed = None if config.data.checksum else listing.read()
    if listed is not None:
        trusted, replaced = listed.images, list[str]()
    else:
        source, verdicts = opening.read(), Verdicts(config.cache_dir, config.data.checksum)
        samples, problems = _checked(source, config, verdicts, progress)
        problems = [*source.problems, *problems]
        listed = Listed(samples, problems, source.ties, source.remarks, verdicts.looked_at)
        if source.state is not None and not verdicts.failed:
            listing.write(listed)
        trusted, replaced = verdicts.trusted, verdicts.replaced
    remarks = (*listed.remarks, *_said_of(trusted, replaced))
    dataset = PairDataset(opening.name, listed.samples, tuple(listed.problems), listed.ties, remarks)
    _refuse_unusable(dataset, config.data.strict)
    return dataset


def take_over(path: Path, config: RunConfig) -> PairDataset | None:
    """The pairs that the main process has opened and handed over (:func:`.listing.hand_over`), without what was wrong
    with others; None where the file is not there. No image is looked at."""

    @cache
    def opening() -> Opening:
        # What is to be read anew, the main process has read.
        data = config.data.model_copy(update={"checksum": False})
        return _opening(config.model_copy(update={"data": data}))

    def image(place: str) -> ImageBytes:
        return opening().image(place)

    return None if (found := taken_over(path, image)) is None else PairDataset(found[1], found[0], (), 0)


def _checked(
    source: PairSource, config: RunConfig, verdicts: Verdicts, progress: bool
) -> tuple[PairColumns, list[Problem]]:
    """The usable pairs, and what is wrong with others."""
    problems: list[Problem] = []
    try:
        return check_pairs(source, config, verdicts, problems, progress).columns(source.image), problems
    finally:
        # Ctrl-C and errors keep what was found.
        verdicts.save()


def _opening(config: RunConfig) -> Opening:
    """The source that the settings name, cut to ``max_pairs``."""
    data = config.data
    if data.hub_id is not None:
        opening = opening_of(hub(data.hub_id, data))
    else:
        assert data.path is not None, "the config has one of the two"
        opening = _local(data.path.expanduser(), config)
    return replace(opening, read=lambda: _cut(opening.read(), data.max_pairs))


def _cut(source: PairSource, most: int | None) -> PairSource:
    """The first pairs of a source."""
    if most is None or most >= len(source.pairs):
        return source
    return replace(source, pairs=LazyPairs(most, lambda: iter(source.pairs)))


def _local(path: Path, config: RunConfig) -> Opening:
    """A file or folder of pairs, in whichever form they are."""
    if not path.exists():
        raise UserError(
            f"`data.path` is {path}, which is not there; correct it, or set `data.hub_id` to fetch a data set"
        )
    # A run's own folders may lie in the data's.
    without = (config.output_dir, config.cache_dir)
    if (path / CANDIDATES).is_file():
        return rated_folder(path, config.data.columns, without)
    near = rated_near(path)
    if near == [path.parent]:
        raise UserError(f"`data.path` is {path}, which is a part of the rated data set {path.parent}; set it to that")
    if (path / METADATA).is_file():
        return metadata_folder(path, config.data.columns, without)
    if (path / "chosen").is_dir() and (path / "rejected").is_dir():
        return two_folders(path, without)
    table = path.is_dir() or path.suffix.lower() == PARQUET
    if table and (source := parquet(path, config.data, config.cache_dir / "tables", without)):
        return opening_of(source)
    if near:
        raise UserError(f"`data.path` is {path}, whose folders are rated data sets; set it to one: {_listed(near)}")
    raise UserError(
        f"`data.path` is {path}, which has none of {METADATA}, chosen/ and rejected/, or .parquet files; "
        "bring the pairs into one of these forms"
    )


def _said_of(trusted: int, replaced: Sequence[str]) -> list[str]:
    """What a user should know of images that were not read again, and of those that look the same and are others."""
    lines = []
    if trusted:
        lines.append(
            f"not read again: {counted(trusted, 'image')} in files whose size and times are those of an earlier start "
            "(`data.checksum: true` reads all)"
        )
    if replaced:
        first = shown(min(replaced), LONGEST_DETAIL)
        lines.append(f"replaced by others of equal size and time of change: {len(replaced)}, such as {first}")
    return lines


def _listed(folders: Sequence[Path]) -> str:
    more = f" and {len(folders) - LISTED_FOLDERS} more" if len(folders) > LISTED_FOLDERS else ""
    return ", ".join(map(str, folders[:LISTED_FOLDERS])) + more


def _refuse_unusable(dataset: PairDataset, strict: bool) -> None:
    if strict and dataset.problems:
        raise UserError(
            f"`data.strict` is true and {dataset.name} has {len(dataset.problems)} problems, the first is "
            f"{dataset.problems[0]}; "
            "mend or remove them, or set `data.strict: false`"
        )
    if not dataset.samples:
        said = [f"{dataset.name} has no usable pair", *dataset.remarks[:1]]
        if dataset.problems:
            counts = Counter(problem.kind for problem in dataset.problems).most_common()
            in_all = ", ".join(f"{kind}: {count}" for kind, count in counts)
            said[1:] = [f"the first problem is {dataset.problems[0]}", f"in all {in_all}"]
        raise UserError(f"{', '.join(said)}; see docs/training.md for the forms that pairs can have")
