"""One pair after the other: what is wrong with it, its bucket, and whether an earlier one says the opposite."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterable, Iterator
from functools import partial

from tqdm import tqdm

from chats.buckets import Bucket, Size, make_buckets, pair_bucket
from chats.draws import pair_id
from chats.words import shown

from ..settings.config import RunConfig
from ..support.parallel import ordered_map
from .columns import single
from .folder_tree import is_text
from .pair_columns import SIDES, ColumnsMaker
from .pairs import PairImage, PairSample, PairSource, Problem, RawPair
from .verdicts import Unusable, Verdicts

# Pairs that a thread looks at before it takes others.
PAIRS_AT_ONCE = 64
# JSON can state a half of a surrogate pair alone.
SURROGATE = re.compile(r"[\ud800-\udfff]")

Looked = tuple[RawPair, str | Problem, list[PairImage | Unusable]]


def check_pairs(
    source: PairSource, config: RunConfig, verdicts: Verdicts, problems: list[Problem], progress: bool
) -> ColumnsMaker:
    """The usable pairs, each once and none whose reverse is there too; fills ``verdicts`` and adds to ``problems``."""
    bucket_of = _bucket_of(config)
    with tqdm(desc="checking pairs", total=len(source.pairs), unit="pair", disable=not progress) as bar:
        looked = _counted(_looked(source.pairs, verdicts), bar)
        return _without_contradictions((_sample(*each, bucket_of) for each in looked), problems)


def _looked(pairs: Iterable[RawPair], verdicts: Verdicts) -> Iterator[list[Looked]]:
    remaining = iter(pairs)
    blocks = iter(lambda: list(itertools.islice(remaining, PAIRS_AT_ONCE)), [])
    return ordered_map(partial(_look, verdicts=verdicts), blocks)


def _look(pairs: list[RawPair], verdicts: Verdicts) -> list[Looked]:
    """Each pair with its prompt and with what was found of its images, of none where the prompt is wrong."""
    prompts = [_prompt(pair) for pair in pairs]
    wanted = [pair for pair, prompt in zip(pairs, prompts, strict=True) if isinstance(prompt, str)]
    found = iter(verdicts.look_at([getattr(pair, side) for pair in wanted for side in SIDES]))
    return [
        (pair, prompt, [next(found), next(found)] if isinstance(prompt, str) else [])
        for pair, prompt in zip(pairs, prompts, strict=True)
    ]


def _counted(blocks: Iterable[list[Looked]], bar: tqdm) -> Iterator[Looked]:
    for block in blocks:
        yield from block
        bar.update(len(block))


def _bucket_of(config: RunConfig) -> Callable[[Size, Size], Bucket]:
    """The bucket of two images' sizes."""
    if config.enable_bucket:
        buckets = make_buckets(
            config.resolution, config.bucket_reso_steps, config.min_bucket_reso, config.max_bucket_reso
        )
    else:
        buckets = (Bucket(config.resolution, config.resolution),)
    # A data set has few sizes and many pairs.
    known: dict[tuple[Size, Size], Bucket] = {}

    def bucket(chosen: Size, rejected: Size) -> Bucket:
        if (chosen, rejected) not in known:
            known[chosen, rejected] = pair_bucket(buckets, chosen, rejected)
        return known[chosen, rejected]

    return bucket


def _sample(
    pair: RawPair,
    prompt: str | Problem,
    found: list[PairImage | Unusable],
    bucket_of: Callable[[Size, Size], Bucket],
) -> tuple[PairSample | None, list[Problem]]:
    """One pair as a sample, or None where it is not usable, with its problems."""
    if isinstance(prompt, Problem):
        return None, [prompt]
    images = []
    for side, image in zip(SIDES, found, strict=True):
        if isinstance(image, Unusable):
            return None, [Problem(image.kind, pair.name, f"{side}: {image.reason}")]
        images.append(image)
    chosen, rejected = images
    if chosen.sha256 == rejected.sha256:
        return None, [Problem("same image", pair.name, "chosen and rejected are the same file")]
    sizes = (chosen.width, chosen.height), (rejected.width, rejected.height)
    problems = []
    if sizes[0] != sizes[1]:
        detail = f"chosen {chosen.width} × {chosen.height}, rejected {rejected.width} × {rejected.height}"
        problems.append(Problem("size mismatch", pair.name, detail))
    identity = pair_id(prompt, chosen.sha256, rejected.sha256)
    return PairSample(identity, pair.name, prompt, chosen, rejected, bucket_of(*sizes)), problems


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
) -> ColumnsMaker:
    """The samples that stand once and whose reverse does not stand too; adds to ``problems``."""
    maker = ColumnsMaker()
    # Of all by their ids, also of those that were taken out again.
    rows: dict[bytes, int] = {}
    for sample, found in checked:
        problems += found
        if sample is None:
            continue
        identity = bytes.fromhex(sample.id)
        if (before := rows.get(identity)) is not None:
            problems.append(Problem("duplicate", sample.name, f"same as {maker.name(before)}"))
            continue
        rows[identity] = row = maker.add(sample)
        reverse = rows.get(bytes.fromhex(pair_id(sample.prompt, sample.rejected.sha256, sample.chosen.sha256)))
        if reverse is None:
            continue
        maker.remove(row)
        other = maker.name(reverse)
        problems.append(Problem("reversed pair", sample.name, f"{other} prefers the other image"))
        if maker.is_kept(reverse):
            maker.remove(reverse)
            problems.append(Problem("reversed pair", other, f"{sample.name} prefers the other image"))
    return maker
