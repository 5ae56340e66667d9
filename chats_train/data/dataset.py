"""Which form of pairs a folder holds, told and opened; every image checked, every problem counted and listed.

What each form may hold: ``folders.py`` (metadata.jsonl, chosen/ and rejected/) and ``tables.py`` (parquet, the hub).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from tqdm import tqdm

from chats.buckets import Bucket, make_buckets, pair_bucket, place
from chats.draws import fingerprint, pair_id
from chats.taste.names import CANDIDATES
from chats.words import shown

from ..settings.config import RunConfig
from ..support.errors import UserError
from ..support.parallel import ordered_map
from .columns import single
from .folder_tree import is_text
from .folders import METADATA, metadata_folder, two_folders
from .pairs import PairSample, PairSource, Problem, RawPair
from .rated import rated_folder, rated_near
from .tables import PARQUET, hub, parquet
from .verdicts import Unusable, Verdicts

LISTED_PROBLEMS, LISTED_FOLDERS = 10, 5
# JSON can state a half of a surrogate pair alone.
SURROGATE = re.compile(r"[\ud800-\udfff]")


@dataclass(frozen=True)
class PairDataset:
    """The usable pairs of a run, in the order of their source, and what was wrong with the others.

    ``ties`` were left out as they state no preference. A pair in ``problems`` is not among the samples, unless its kind
    is "size mismatch": such a pair is usable, cropped to one bucket. ``remarks`` are lines on the files that were read
    and left out.
    """

    name: str
    samples: tuple[PairSample, ...]
    problems: tuple[Problem, ...]
    ties: int
    remarks: tuple[str, ...] = ()

    @property
    def fingerprint(self) -> str:
        """Digest of the pairs' contents, whatever their order: ``chats.dataset_fingerprint`` of the pair's metadata."""
        return fingerprint(self.samples)

    def report(self) -> list[str]:
        """What a user wants to know, a line each: counts, buckets, and the first problems by name."""
        lines = [f"{self.name}: {len(self.samples)} pairs" + (f", {self.ties} ties left out" if self.ties else "")]
        for bucket, count in Counter(sample.bucket for sample in self.samples).most_common():
            lines.append(f"  {bucket.width} × {bucket.height}: {count}")
        if enlarged := sum(map(_is_enlarged, self.samples)):
            lines.append(f"  {enlarged} pairs have an image smaller than its bucket, which is enlarged")
        lines += [f"  {line}" for line in (*_near_duplicates(self.samples), *self.remarks)]
        counts = Counter(problem.kind for problem in self.problems)
        lines += [f"  {kind}: {count}" for kind, count in counts.most_common()]
        lines += [f"    {problem}" for problem in self.problems[:LISTED_PROBLEMS]]
        if len(self.problems) > LISTED_PROBLEMS:
            lines.append(f"    and {len(self.problems) - LISTED_PROBLEMS} more")
        return lines


def open_dataset(config: RunConfig, progress: bool = True) -> PairDataset:
    """Opens the pairs of a config and looks at every image.

    The verdict on an image is kept in ``cache_dir`` by the hash of its bytes, so that it is decoded only once; its
    bytes are read and hashed each time, so that a changed file is never taken for the old one.

    Raises:
        UserError: when the source cannot be used, no pair is usable, or there is any problem and ``data.strict`` is
            set.
    """
    source = _open_source(config)
    verdicts = Verdicts(config.cache_dir)
    problems = list(source.problems)
    checked = tqdm(
        _checked(source, config, verdicts), "checking pairs", len(source.pairs), unit="pair", disable=not progress
    )
    samples = _without_contradictions(checked, problems)
    verdicts.save()
    dataset = PairDataset(source.name, samples, tuple(problems), source.ties, tuple(source.remarks))
    _refuse_unusable(dataset, config.data.strict)
    return dataset


def _open_source(config: RunConfig) -> PairSource:
    """The source that the settings name, cut to ``max_pairs``."""
    data = config.data
    if data.hub_id is not None:
        source = hub(data.hub_id, data)
    else:
        assert data.path is not None, "the config has one of the two"
        source = _local_source(data.path.expanduser(), config)
    return replace(source, pairs=source.pairs[: data.max_pairs])


def _local_source(path: Path, config: RunConfig) -> PairSource:
    """The pairs of a file or folder, in whichever form they are."""
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
        return source
    if near:
        raise UserError(f"`data.path` is {path}, whose folders are rated data sets; set it to one: {_listed(near)}")
    raise UserError(
        f"`data.path` is {path}, which has none of {METADATA}, chosen/ and rejected/, or .parquet files; "
        "bring the pairs into one of these forms"
    )


def _listed(folders: Sequence[Path]) -> str:
    more = f" and {len(folders) - LISTED_FOLDERS} more" if len(folders) > LISTED_FOLDERS else ""
    return ", ".join(map(str, folders[:LISTED_FOLDERS])) + more


def _checked(
    source: PairSource, config: RunConfig, verdicts: Verdicts
) -> Iterator[tuple[PairSample | None, list[Problem]]]:
    """Each pair as a sample, or None where it is not usable, with its problems; fills ``verdicts``."""
    if config.enable_bucket:
        buckets = make_buckets(
            config.resolution, config.bucket_reso_steps, config.min_bucket_reso, config.max_bucket_reso
        )
    else:
        buckets = (Bucket(config.resolution, config.resolution),)
    return ordered_map(partial(_check, buckets=buckets, verdicts=verdicts), source.pairs)


def _check(pair: RawPair, buckets: tuple[Bucket, ...], verdicts: Verdicts) -> tuple[PairSample | None, list[Problem]]:
    """One pair as a sample, or None where it is not usable, with its problems."""
    prompt = _prompt(pair)
    if isinstance(prompt, Problem):
        return None, [prompt]
    images = []
    for side in ("chosen", "rejected"):
        found = verdicts.look_at(getattr(pair, side))
        if isinstance(found, Unusable):
            return None, [Problem(found.kind, pair.name, f"{side}: {found.reason}")]
        images.append(found)
    chosen, rejected = images
    if chosen.sha256 == rejected.sha256:
        return None, [Problem("same image", pair.name, "chosen and rejected are the same file")]
    sizes = (chosen.width, chosen.height), (rejected.width, rejected.height)
    problems = []
    if sizes[0] != sizes[1]:
        detail = f"chosen {chosen.width} × {chosen.height}, rejected {rejected.width} × {rejected.height}"
        problems.append(Problem("size mismatch", pair.name, detail))
    identity = pair_id(prompt, chosen.sha256, rejected.sha256)
    return PairSample(identity, pair.name, prompt, chosen, rejected, pair_bucket(buckets, *sizes)), problems


def _prompt(pair: RawPair) -> str | Problem:
    """The text in the prompt's place, or what is wrong with what is there."""
    prompt = single(pair.prompt)
    if prompt is None or (isinstance(prompt, str) and not prompt.strip()):
        return Problem("missing caption", pair.name, "no text")
    if not isinstance(prompt, str):
        return Problem("missing caption", pair.name, f"no text but {shown(prompt)}")
    if SURROGATE.search(prompt):
        return Problem("missing caption", pair.name, "half of a character, which no text can hold")
    if not is_text(prompt):
        return Problem("unreadable caption", pair.name, "NUL characters, which no text holds")
    return prompt.strip()


def _without_contradictions(
    checked: Iterable[tuple[PairSample | None, list[Problem]]], problems: list[Problem]
) -> tuple[PairSample, ...]:
    """The samples that stand once and whose reverse does not stand too; adds to ``problems``."""
    samples: dict[str, PairSample] = {}
    # Of all by their ids, also of those that were taken out again.
    names: dict[str, str] = {}
    for sample, found in checked:
        problems += found
        if sample is None:
            continue
        reverse = pair_id(sample.prompt, sample.rejected.sha256, sample.chosen.sha256)
        if sample.id in names:
            problems.append(Problem("duplicate", sample.name, f"same as {names[sample.id]}"))
            continue
        names[sample.id] = sample.name
        if reverse not in names:
            samples[sample.id] = sample
            continue
        problems.append(Problem("reversed pair", sample.name, f"{names[reverse]} prefers the other image"))
        if other := samples.pop(reverse, None):
            problems.append(Problem("reversed pair", other.name, f"{sample.name} prefers the other image"))
    return tuple(samples.values())


def _near_duplicates(samples: Sequence[PairSample]) -> list[str]:
    """How many samples repeat a part of an earlier one, a line for each kind; they are trained on."""
    keys: dict[str, Callable[[PairSample], tuple[str, str]]] = {
        "both images, under another prompt": lambda sample: (
            min(sample.chosen.sha256, sample.rejected.sha256),
            max(sample.chosen.sha256, sample.rejected.sha256),
        ),
        "prompt and chosen image": lambda sample: (sample.prompt, sample.chosen.sha256),
        "prompt and rejected image": lambda sample: (sample.prompt, sample.rejected.sha256),
    }
    counts = {kind: len(samples) - len(set(map(key, samples))) for kind, key in keys.items()}
    return [f"near-duplicates ({kind} of an earlier pair): {count}" for kind, count in counts.items() if count]


def _is_enlarged(sample: PairSample) -> bool:
    sizes = ((image.width, image.height) for image in (sample.chosen, sample.rejected))
    return any(place(size, sample.bucket).resized[0] > size[0] for size in sizes)


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
