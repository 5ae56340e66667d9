"""A checked data set: every image read, decoded once and placed in a bucket, every problem counted and listed."""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from tqdm import tqdm

from chats.files import write_text

from ..settings.config import RunConfig
from ..support.errors import UserError
from ..support.parallel import ordered_map
from .buckets import Bucket, make_buckets, pair_bucket, place
from .folders import METADATA, metadata_folder, two_folders
from .images import decode
from .pairs import ImageBytes, PairImage, PairSample, PairSource, Problem, RawPair, pair_id
from .tables import hub, parquet

LISTED_PROBLEMS = 10
VERDICTS_FILE = "images.json"
# JSON can state a half of a surrogate pair alone.
SURROGATE = re.compile(r"[\ud800-\udfff]")
# What decoding an image found, by the SHA-256 of its bytes: its size (width, height), or why it is broken.
Verdicts = dict[str, tuple[int, int] | str]


@dataclass(frozen=True)
class PairDataset:
    """The usable pairs of a run, in the order of their source, and what was wrong with the others.

    ``ties`` were left out as they state no preference. A pair in ``problems`` is not among the samples, unless its kind
    is "size mismatch": such a pair is usable, cropped to one bucket.
    """

    name: str
    samples: tuple[PairSample, ...]
    problems: tuple[Problem, ...]
    ties: int

    @property
    def fingerprint(self) -> str:
        """Digest of the pairs' contents, whatever their order: ``chats.dataset_fingerprint`` of the pair's metadata."""
        return hashlib.sha256("\n".join(sorted(sample.id for sample in self.samples)).encode()).hexdigest()

    def report(self) -> list[str]:
        """What a user wants to know, a line each: counts, buckets, and the first problems by name."""
        lines = [f"{self.name}: {len(self.samples)} pairs" + (f", {self.ties} ties left out" if self.ties else "")]
        for bucket, count in Counter(sample.bucket for sample in self.samples).most_common():
            lines.append(f"  {bucket.width} × {bucket.height}: {count}")
        if enlarged := sum(map(_is_enlarged, self.samples)):
            lines.append(f"  {enlarged} pairs have an image smaller than its bucket, which is enlarged")
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
    verdicts = _load_verdicts(config.cache_dir / VERDICTS_FILE)
    known = len(verdicts)
    samples: dict[str, PairSample] = {}
    problems = list(source.problems)
    for sample, found in tqdm(
        _checked(source, config, verdicts), "checking pairs", len(source.pairs), unit="pair", disable=not progress
    ):
        problems += found
        if sample is not None and sample.id in samples:
            problems.append(Problem("duplicate", sample.name, f"same as {samples[sample.id].name}"))
        elif sample is not None:
            samples[sample.id] = sample
    if len(verdicts) > known:
        write_text(config.cache_dir / VERDICTS_FILE, json.dumps(verdicts))
    dataset = PairDataset(source.name, tuple(samples.values()), tuple(problems), source.ties)
    _refuse_unusable(dataset, config.data.strict)
    return dataset


def _open_source(config: RunConfig) -> PairSource:
    """The source that the settings name, cut to ``max_pairs``."""
    data = config.data
    if data.hub_id is not None:
        source = hub(data.hub_id, data)
    else:
        assert data.path is not None, "the config has one of the two"
        path = data.path.expanduser()
        if not path.exists():
            raise UserError(
                f"`data.path` is {path}, which is not there; correct it, or set `data.hub_id` to fetch a data set"
            )
        if (path / METADATA).is_file():
            source = metadata_folder(path, data.columns)
        elif (path / "chosen").is_dir() and (path / "rejected").is_dir():
            source = two_folders(path)
        elif path.suffix == ".parquet" or (path.is_dir() and any(path.rglob("*.parquet"))):
            source = parquet(path, data.columns, config.cache_dir / "tables")
        else:
            raise UserError(
                f"`data.path` is {path}, which has none of {METADATA}, chosen/ and rejected/, or .parquet files; "
                "bring the pairs into one of these forms"
            )
    return PairSource(source.name, source.pairs[: data.max_pairs], source.problems, source.ties)


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
    prompt = pair.prompt.strip() if isinstance(pair.prompt, str) else ""
    if not prompt:
        return None, [Problem("missing caption", pair.name, "no text")]
    if SURROGATE.search(prompt):
        return None, [Problem("missing caption", pair.name, "half of a character, which no text can hold")]
    images = []
    for side in ("chosen", "rejected"):
        found = _look_at(getattr(pair, side), verdicts)
        if isinstance(found, str):
            return None, [Problem("broken image", pair.name, f"{side}: {found}")]
        images.append(found)
    chosen, rejected = images
    sizes = (chosen.width, chosen.height), (rejected.width, rejected.height)
    problems = []
    if sizes[0] != sizes[1]:
        detail = f"chosen {chosen.width} × {chosen.height}, rejected {rejected.width} × {rejected.height}"
        problems.append(Problem("size mismatch", pair.name, detail))
    identity = pair_id(prompt, chosen.sha256, rejected.sha256)
    return PairSample(identity, pair.name, prompt, chosen, rejected, pair_bucket(buckets, *sizes)), problems


def _look_at(source: ImageBytes, verdicts: Verdicts) -> PairImage | str:
    """The image with its hash and size, or why it is broken."""
    try:
        encoded = source.read()
    except OSError as error:
        return error.strerror or str(error)
    digest = hashlib.sha256(encoded).hexdigest()
    if digest not in verdicts:
        try:
            verdicts[digest] = decode(encoded).size
        except OSError as error:
            verdicts[digest] = str(error)
    verdict = verdicts[digest]
    return verdict if isinstance(verdict, str) else PairImage(source, digest, *verdict)


def _load_verdicts(path: Path) -> Verdicts:
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}  # The first time, or damaged: the images are decoded anew.
    return stored if isinstance(stored, dict) else {}


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
        first = f", the first problem is {dataset.problems[0]}" if dataset.problems else ""
        raise UserError(f"{dataset.name} has no usable pair{first}; see the README for the forms that pairs can have")
