"""The tables of the paper for one base: what is missing is drawn and scored, and each table is written."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from ...families import Family
from ...runs.opening import open_family
from ...runs.peers import Peers, peers_of
from ...runs.processes import Processes
from ...runs.subjects import Subject
from ...support.errors import UserError
from ..benchmark import Benchmark, Parts, Scorer
from ..drawing import Picture, draw_pictures, plan_pictures
from ..evaluate import only_evaluation_in
from ..prompts import EvaluationPrompt, read_prompts
from ..report import Breakdown
from ..scorers import open_scorers
from ..scoring import read_parts, score_pictures
from ..statistics import Estimate, estimate
from .cells import Table, make_table
from .files import paths_text, write_table
from .inputs import PROMPT_FILES, by_benchmark, open_models
from .layout import PAIR, THROUGHPUT, Column, Layout, Method, benchmark_of, layouts
from .notes import base_notes, base_title, how_it_was_made, scorer_notes, subject_notes
from .throughput import measure


@dataclass(frozen=True)
class TableSettings:
    """Which tables, and what to draw for them; ``seeds`` None takes each table's own, ``alphas`` are Figure 5's."""

    names: tuple[str, ...]
    prompts: tuple[Path, ...] = ()
    models: tuple[str, ...] = ()
    seeds: int | None = None
    steps: int = 50
    alphas: tuple[float, ...] = ()
    batch_size: int = 1

    def __post_init__(self) -> None:
        for name, value in (("seeds", self.seeds), ("steps", self.steps), ("batch-size", self.batch_size)):
            if value is not None and value < 1:
                raise UserError(f"`--{name}` is {value}; give 1 or more")


@dataclass
class _Work:
    """What is known while tables are made."""

    pictures: dict[tuple[str, Method], list[Picture]]
    notes: list[str]
    base: str = ""
    rates: Mapping[tuple[str, int], Estimate] | None = None


def make_tables(pair: Subject, settings: TableSettings, scorer_specs: Sequence[str], folder: Path | None) -> list[str]:
    """Makes the tables of a pair and of what is named beside it, into ``folder``, by default `<output_dir>/evaluation`.
    Pictures and scores that are there already are taken.

    Returns:
        the tables, as lines of text; of several processes in the main one alone.

    Raises:
        UserError: for what the user can mend.
    """
    processes = Processes()
    with peers_of(processes) as peers:
        folder = folder or pair.config.output_dir / "evaluation"
        wanted = layouts(settings.names, settings.alphas)
        prompts, repeated = read_prompts(settings.prompts) if settings.prompts else ([], 0)
        scorers = {scorer.name: scorer for scorer in open_scorers(scorer_specs, processes.device)}
        subjects = {PAIR: pair, **open_models(settings.models, pair)}
        notes = [f"{repeated} repetitions of prompts are left out"] if repeated else []
        with only_evaluation_in(folder, peers):
            by_name = by_benchmark(prompts)
            work = _drawn(wanted, subjects, by_name, scorers, settings, folder, processes.device, peers)
            scores = _scored(wanted, work, scorers, by_name, folder, peers)
            if not peers.is_main:
                return []
            lines = []
            for layout in wanted:
                table = _table(layout, work, subjects, scorers, scores, by_name, folder, settings, notes)
                text, paths = write_table(folder, table)
                lines += [*text, paths_text(paths)]
            return lines


def _drawn(
    wanted: Sequence[Layout],
    subjects: Mapping[str, Subject],
    by_name: Mapping[str, Sequence[EvaluationPrompt]],
    scorers: Mapping[str, Scorer],
    settings: TableSettings,
    folder: Path,
    device: torch.device,
    peers: Peers,
) -> _Work:
    """Draws every picture that a scorer will look at, one subject after the other, and measures throughput."""
    work = _Work({}, [])
    base = ""
    for name, subject in subjects.items():
        family = open_family(subject.config, device)
        if name == PAIR:
            base, work.base = family.base_sha256, base_title(subject, family)
            work.notes += base_notes(subject, family, work.base)
        elif family.base_sha256 != base:
            raise UserError(f"`--model` {name} is of another base than the pair; give one of the same base")
        planned: dict[tuple[str, Method], list[Picture]] = {}
        for layout in wanted:
            drawn = [prompt for each in _used(layout, scorers) for prompt in by_name.get(each, ())]
            planned |= _planned(layout, name, subject, family, drawn, settings, folder)
        work.pictures |= planned
        own = _unique(picture for each in planned.values() for picture in each)
        timed = [layout for layout in wanted if name == PAIR and layout.name == "6"]
        # The main process says it for all: another may look when the first pictures are there.
        if peers.told(partial(_is_work_left, own, timed)):
            members = subject.members(family)
            draw_pictures(own, subject.config, family, members, settings.steps, settings.batch_size, peers=peers)
            if timed and peers.is_main:
                methods = [method for method in timed[0].methods if not _one_model(method, subject)]
                weights = subject.weights_sha256
                work.rates = measure(methods, subject.config, family, weights, members, settings.steps, folder)
            del members
        family.release_encoders()
    return work


def _is_work_left(pictures: Sequence[Picture], timed: Sequence[Layout]) -> bool:
    return bool(timed) or not all(picture.drawn for picture in pictures)


def _planned(
    layout: Layout,
    name: str,
    subject: Subject,
    family: Family,
    prompts: Sequence[EvaluationPrompt],
    settings: TableSettings,
    folder: Path,
) -> dict[tuple[str, Method], list[Picture]]:
    """The pictures of each of a table's rows that a subject draws."""
    methods = [each for each in layout.methods if each.models == name and not _one_model(each, subject)]
    planned = plan_pictures(
        folder,
        subject.config,
        family,
        subject.weights_sha256,
        list(dict.fromkeys(method.condition for method in methods)),
        prompts,
        range(settings.seeds or layout.seeds),
        settings.steps,
    )
    return {
        (layout.name, method): [picture for picture in planned if picture.condition == method.condition]
        for method in methods
    }


def _scored(
    wanted: Sequence[Layout],
    work: _Work,
    scorers: Mapping[str, Scorer],
    by_name: Mapping[str, Sequence[EvaluationPrompt]],
    folder: Path,
    peers: Peers,
) -> dict[str, dict[str, float]]:
    """By scorer and picture key; each scorer looks at the benchmarks that a column asks it for."""
    found = {}
    for name, scorer in scorers.items():
        asked = {
            (layout.name, prompt.text)
            for layout in wanted
            for column in layout.columns
            if column.quantity.scorer == name
            for prompt in by_name.get(benchmark_of(column.quantity), ())
        }
        pictures = _unique(
            picture
            for (layout, _), each in work.pictures.items()
            for picture in each
            if (layout, picture.prompt.text) in asked
        )
        found[name] = score_pictures(scorer, pictures, folder, peers) if pictures else {}
    return found


def _table(
    layout: Layout,
    work: _Work,
    subjects: Mapping[str, Subject],
    scorers: Mapping[str, Scorer],
    scores: Mapping[str, Mapping[str, float]],
    by_name: Mapping[str, Sequence[EvaluationPrompt]],
    folder: Path,
    settings: TableSettings,
    notes: Sequence[str],
) -> Table:
    parts = {
        name: read_parts(scorer, _unique(p for each in work.pictures.values() for p in each), folder)
        for name, scorer in scorers.items()
        if isinstance(scorer, Benchmark) and any(column.quantity.scorer == name for column in layout.columns)
    }

    def ours(method: Method, column: Column) -> Estimate | str:
        quantity = column.quantity
        if method.models not in subjects:
            return f"{method.title} needs `--model {method.models}=…`"
        if _one_model(method, subjects[method.models]):
            return f"{method.title} needs a pair, and the run is of one model"
        if quantity.scorer == THROUGHPUT:
            assert work.rates is not None
            return work.rates[method.title, int(quantity.part)]
        if quantity.scorer not in scorers:
            return f"{column.title} needs `--scorer {quantity.scorer}=…`"
        benchmark = benchmark_of(quantity)
        if benchmark not in by_name:
            return f"{column.title} needs prompts: {PROMPT_FILES[benchmark]} in `--prompts`"
        texts = {prompt.text for prompt in by_name[benchmark]}
        pictures = [each for each in work.pictures[layout.name, method] if each.prompt.text in texts]
        found = _figure(
            pictures, scores[quantity.scorer], parts.get(quantity.scorer), scorers[quantity.scorer], quantity.part
        )
        return found or f"{column.title} has no prompt of its own in `--prompts`"

    counts = ", ".join(f"{len(by_name[each])} of {each}" for each in sorted(layout.benchmarks) if each in by_name)
    said = [*work.notes, *notes, *how_it_was_made(layout, counts, settings.seeds or layout.seeds, settings.steps)]
    said += [*scorer_notes(layout, scorers), *subject_notes(layout, subjects)]
    return make_table(layout, work.base, ours, tuple(said))


def _figure(
    pictures: Sequence[Picture],
    scores: Mapping[str, float],
    parts: Mapping[str, Parts] | None,
    scorer: Scorer,
    part: str,
) -> Estimate | None:
    """A scorer's mean over pictures, or a benchmark's of one category or overall; None where there is nothing."""
    scored = [picture for picture in pictures if picture.key in scores]
    values = {(picture.prompt.text, picture.seed): scores[picture.key] for picture in scored}
    if not values:
        return None
    if not isinstance(scorer, Benchmark):
        return estimate(values)
    assert parts is not None
    condition = scored[0].condition
    own = {(picture.prompt.text, picture.seed): parts[picture.key] for picture in scored}
    breakdown = Breakdown({condition: own}, scorer.categories, scorer.mean_of_categories)
    if part == "overall":
        return breakdown.overall(condition, values, estimate)
    return breakdown.groups(condition).get(part)


def _used(layout: Layout, scorers: Mapping[str, Scorer]) -> list[str]:
    """The benchmarks of a table that a scorer will look at, each once, in the columns' order."""
    return list(
        dict.fromkeys(benchmark_of(column.quantity) for column in layout.columns if column.quantity.scorer in scorers)
    )


def _one_model(method: Method, subject: Subject) -> bool:
    """Whether a method wants a pair of a subject that is none."""
    return method.condition.models == "pair" and subject.models == 1


def _unique(pictures: Iterable[Picture]) -> list[Picture]:
    return list({picture.key: picture for picture in pictures}.values())
