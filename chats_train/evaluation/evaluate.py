"""A whole evaluation: probe, pictures, scores, report. What was drawn or scored before is not drawn or scored again."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch

from chats.locks import locked

from ..runs.folder import LOCK
from ..runs.opening import open_family
from ..runs.peers import Peers, peers_of
from ..runs.processes import Processes
from ..runs.subjects import Subject
from ..sampling.sampler import Form
from ..settings.config import RunConfig
from ..settings.facts import FAMILIES
from ..support.errors import UserError
from .benchmark import Benchmark
from .conditions import make_conditions
from .drawing import draw_pictures, plan_pictures
from .negatives import compare_negatives, keep_verdict
from .probing import PROBE_FILE, probe_pair, write_probe
from .prompts import EvaluationPrompt, read_prompts
from .report_files import break_down, by_condition, probe_text, write_report
from .scorers import open_scorers
from .scoring import score_pictures

NO_PROXY = "{}'s prompts have lengths of their own, between which no proxy prompt is defined"


@dataclass(frozen=True)
class EvaluationSettings:
    """What to sample. Empty lists of α or guidance scales take the run's own, one of forms the family's usual one;
    ``seeds`` 0 draws no picture, for a probe alone."""

    prompts: tuple[Path, ...]
    seeds: int = 4
    steps: int = 50
    alphas: tuple[float, ...] = ()
    guidance_scales: tuple[float, ...] = ()
    forms: tuple[Form, ...] = ()
    batch_size: int = 1
    probe: bool = False

    def __post_init__(self) -> None:
        for name, value, least in (
            ("seeds", self.seeds, 0),
            ("steps", self.steps, 1),
            ("batch-size", self.batch_size, 1),
        ):
            if value < least:
                raise UserError(f"`--{name}` is {value}; give {least} or more")
        if self.seeds == 0 and not self.probe:
            raise UserError("`--seeds` is 0, which draws nothing; give 1 or more, or `--probe` too")
        for alpha in self.alphas:
            if not math.isfinite(alpha):
                raise UserError(f"`--alpha` is {alpha}; give a number, such as 0.5")


def evaluate(
    subject: Subject, settings: EvaluationSettings, scorer_specs: Sequence[str], folder: Path | None
) -> list[str]:
    """Evaluates a run's checkpoint, or files of a pair, into ``folder``, by default `<output_dir>/evaluation`.

    Returns:
        the report, as lines of text; of several processes that draw and score together, in the main one alone.

    Raises:
        UserError: for what the user can mend; before anything is drawn where that can be told.
    """
    processes = Processes()
    with peers_of(processes) as peers:
        return _evaluate(subject, settings, scorer_specs, folder, processes.device, peers)


def _evaluate(
    subject: Subject,
    settings: EvaluationSettings,
    scorer_specs: Sequence[str],
    folder: Path | None,
    device: torch.device,
    peers: Peers,
) -> list[str]:
    config, pair = subject.config, subject.models == 2
    folder = folder or config.output_dir / "evaluation"
    prompts, repeated = read_prompts(settings.prompts)
    alphas = settings.alphas or (config.alpha,)
    _refuse_a_probe_of_nothing(config, settings, pair, alphas)
    forms = _forms(config, settings)
    conditions = make_conditions(pair, settings.guidance_scales or (config.guidance_scale,), alphas, forms)
    scorers = open_scorers(scorer_specs, device)
    benchmarks = [scorer for scorer in scorers if isinstance(scorer, Benchmark)]
    own = {benchmark.name: _own_prompts(benchmark, prompts) for benchmark in benchmarks}
    family = open_family(config, device)
    members, weights = subject.members(family), subject.weights_sha256

    header = _header(subject.name, config, settings, len(prompts), repeated, pair)
    with only_evaluation_in(folder, peers):
        probed = []
        if settings.probe and peers.is_main:
            probed = probe_pair(config, family, members, prompts, alphas, settings.steps)
            write_probe(folder, weights, probed)
        if settings.seeds == 0:
            return [*header, *probe_text(probed), f"{folder / PROBE_FILE}"] if peers.is_main else []
        pictures = plan_pictures(
            folder, config, family, weights, conditions, prompts, range(settings.seeds), settings.steps
        )
        drawn = draw_pictures(pictures, config, family, members, settings.steps, settings.batch_size, peers=peers)
        header.append(f"{len(pictures)} pictures, {drawn} of them drawn now, {len(pictures) - drawn} kept from before")
        # The scorers want the room.
        del members
        family.release_encoders()
        scores = {scorer.name: score_pictures(scorer, pictures, folder, peers) for scorer in scorers}
        if not peers.is_main:
            return []
        comparisons = compare_negatives(by_condition(pictures, scores))
        kept = keep_verdict(config.output_dir, weights, comparisons) if subject.is_run else []
        breakdowns = {benchmark.name: break_down(benchmark, pictures, folder) for benchmark in benchmarks}
        header += [f"{note} ({own[each.name]} of {len(prompts)} prompts)" for each in benchmarks for note in each.notes]
        return [*write_report(folder, header, pictures, scores, comparisons, probed, breakdowns), *kept]


def _own_prompts(benchmark: Benchmark, prompts: Sequence[EvaluationPrompt]) -> int:
    """How many prompts are a benchmark's own.

    Raises:
        UserError: when none is, or what one asks for cannot be read.
    """
    count = sum(benchmark.applies_to(prompt) for prompt in prompts)
    if not count:
        raise UserError(
            f"`--scorer` {benchmark.name} scores its own prompts, of which `--prompts` has none; give "
            f"{benchmark.wanted_prompts}"
        )
    return count


def _refuse_a_probe_of_nothing(
    config: RunConfig, settings: EvaluationSettings, pair: bool, alphas: Sequence[float]
) -> None:
    has_proxy = "proxy" in FAMILIES[config.family].forms
    if settings.probe and not (pair and any(alphas) and has_proxy):
        reason = "`--alpha` is 0" if pair else f"`objective` is {config.objective}, of one model"
        reason = reason if has_proxy else NO_PROXY.format(FAMILIES[config.family].title)
        raise UserError(f"`--probe` needs a pair and an α other than 0, but {reason}; leave it out")


def _forms(config: RunConfig, settings: EvaluationSettings) -> list[Form]:
    """Of those asked for, the forms that the family has; its usual one where that leaves none."""
    has = FAMILIES[config.family].forms
    return [form for form in settings.forms if form in has] or [has[0]]


def _header(
    name: str, config: RunConfig, settings: EvaluationSettings, prompts: int, repeated: int, pair: bool
) -> list[str]:
    """What is evaluated, as the report's first lines."""
    header = [
        f"{name}: {prompts} prompts, seeds for each: {settings.seeds}, "
        f"{config.resolution} × {config.resolution} px, {settings.steps} steps"
    ]
    facts = FAMILIES[config.family]
    if not set(settings.forms) <= set(facts.forms):
        header.append(f"the proxy form is left out: {NO_PROXY.format(facts.title)}")
    if repeated:
        header.append(f"{repeated} repetitions of prompts are left out")
    if not pair:
        header.append(
            f"`objective` is {config.objective}, of one model: it is sampled alone, and with the base as its negative"
        )
    return header


@contextmanager
def only_evaluation_in(folder: Path, peers: Peers) -> Iterator[None]:
    """Keeps other evaluations out of a folder; the main process holds the lock for all."""
    with locked(folder / LOCK) if peers.is_main else nullcontext(True) as free:
        if not free:
            raise UserError(
                f"`--output` is {folder}, where another evaluation is at work now; wait for its end, stop it, or "
                "choose another `--output`"
            )
        peers.wait()
        yield
