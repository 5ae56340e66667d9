"""A whole run: data, cache, steps, measurements, checkpoints, export; and how it ends."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from tqdm import tqdm

from chats.files import replacing
from chats.words import shown_error

from ..data import PairDataset, open_dataset
from ..encodings.cache import CachedEncodings, LiveEncodings, PairEncodings, fill_cache
from ..families import Family
from ..runs.checkpoint import RESUME, has_checkpoint, open_checkpoint, save_checkpoint
from ..runs.folder import CHECKPOINTS, CONFIG_FILE, LOCK, PREVIEWS
from ..runs.opening import open_family, settled
from ..runs.pair_export import export_pair
from ..runs.previews import preview
from ..runs.probe_file import read_probe
from ..runs.processes import Processes
from ..settings.config import RunConfig
from ..settings.config_file import save_resolved
from ..support.errors import UserError
from ..support.locks import locked
from .last_probe import probe_trained
from .reports import HELD_OUT, Reports
from .trainer import NotFinite, StepReport, Trainer


def train(config: RunConfig, use_cache: bool = True) -> str:
    """Trains, and exports the pair into ``output_dir``; goes on where a checkpoint says so.

    SIGINT and SIGTERM end the run after the step at hand, with a checkpoint of it.

    Args:
        use_cache: encode once and keep it, or encode at each use.

    Returns:
        one line that says how it ended.

    Raises:
        UserError: for what the user can mend; a NaN among it, with the last good checkpoint named.
    """
    processes = Processes()
    with _only_run_in(config.output_dir, processes):
        _refuse_to_take_over(config)
        return _train(config, processes, use_cache)


def _train(config: RunConfig, processes: Processes, use_cache: bool) -> str:
    family = open_family(config, processes.device)
    dataset = _open_data(config, processes)
    config = settled(config, family)
    encodings = _open_encodings(config, family, dataset, processes, use_cache)
    trainer = Trainer(config, family, dataset, encodings, processes)
    _resume(trainer)
    if processes.is_main:
        save_resolved(config, config.output_dir / CONFIG_FILE)
    with _stop_signals() as stopped:
        finished = _run_steps(trainer, stopped)
    if not finished:
        return f"stopped after step {trainer.step}; go on with `--set resume_from_checkpoint=latest`"
    if not processes.is_main:
        return f"trained {trainer.step} steps"
    probe = _probe(trainer)
    files = export_pair(
        config, family, trainer.weights(), trainer.step, dataset.fingerprint, config.output_dir, probe=probe
    )
    return f"trained {trainer.step} steps: " + ", ".join(map(str, files))


def _probe(trainer: Trainer) -> dict[str, float]:
    """What the probe adds to the pair's metadata. A probe that fails, of memory say, does not keep a trained pair from
    its export."""
    try:
        probe_trained(trainer)
    except RuntimeError as error:
        print(
            f"the pair is exported without a probe of its proxy prompt, which failed ({shown_error(error)}); try "
            "`evaluate --probe`"
        )
    return read_probe(trainer.config.output_dir, trainer.step)


def _run_steps(trainer: Trainer, stopped: list[int]) -> bool:
    """Steps until the last one or a signal; whether it was the last."""
    config, processes = trainer.config, trainer.processes
    reports = Reports(config.output_dir, trainer.step, config.report_to == "tensorboard") if processes.is_main else None
    bar = tqdm(total=config.max_train_steps, initial=trainer.step, unit="step", disable=not processes.is_main)
    halted = False
    while trainer.step < config.max_train_steps and not halted:
        started = time.perf_counter()
        report = _step(trainer)
        row = {
            "step": report.step,
            **report.metrics,
            "pairs_per_second": report.pairs / (time.perf_counter() - started),
        }
        halted = processes.any(bool(stopped))
        if report.step % config.validation_steps == 0 or report.step == config.max_train_steps:
            row |= {HELD_OUT + name: value for name, value in trainer.validate().items()}
        if reports is not None:
            reports.add(row)
            bar.set_postfix_str(_summary(row))
            bar.update()
            if config.sample_every and report.step % config.sample_every == 0:
                _save_preview(trainer)
        if halted or report.step % config.checkpointing_steps == 0 or report.step == config.max_train_steps:
            _save(trainer, reports)
    bar.close()
    if reports is not None:
        reports.close()
    return trainer.step >= config.max_train_steps


def _step(trainer: Trainer) -> StepReport:
    try:
        return trainer.train_step()
    except NotFinite as error:
        good = open_checkpoint(trainer.config.output_dir / CHECKPOINTS, "latest", RESUME)
        way_out = f"go on from {good.path}" if good else "there is no checkpoint yet, start again"
        raise UserError(f"{error}; {way_out}, with a lower `learning_rate` or `mixed_precision: no`") from error


def _save(trainer: Trainer, reports: Reports | None) -> None:
    """A checkpoint, by the main process; the members are the same in all."""
    if reports is not None:
        save_checkpoint(
            trainer.config.output_dir / CHECKPOINTS, trainer.state(), trainer.config.checkpoints_total_limit
        )
        reports.plot()
    trainer.processes.wait()


def _save_preview(trainer: Trainer) -> None:
    """previews/step-….png; the decoder comes back to memory for it and leaves again."""
    config = trainer.config
    encoded = [trainer.encodings.prompt(text) for text in config.sample_prompts]
    prompts = [
        ({name: tensor[None].to(trainer.device) for name, tensor in prompt.items()}, trainer.null) for prompt in encoded
    ]
    picture = preview(config, trainer.family, trainer.members, prompts, trainer.device)
    with replacing(config.output_dir / PREVIEWS / f"step-{trainer.step:08d}.png") as temporary:
        picture.save(temporary, format="png")
    if isinstance(trainer.encodings, CachedEncodings):
        trainer.family.release_encoders()


def _open_data(config: RunConfig, processes: Processes) -> PairDataset:
    """The data set; the main process looks at it first and leaves its verdicts for the others."""
    if not processes.is_main:
        processes.wait()
    dataset = open_dataset(config, progress=processes.is_main)
    if processes.is_main:
        processes.wait()
    return dataset


def _open_encodings(
    config: RunConfig, family: Family, dataset: PairDataset, processes: Processes, use_cache: bool
) -> PairEncodings:
    if not use_cache:
        return LiveEncodings(family)
    fill_cache(
        config.cache_dir,
        dataset.samples,
        family,
        config.sample_prompts,
        process_index=processes.index,
        num_processes=processes.count,
        progress=processes.is_main,
    )
    family.release_encoders()
    processes.wait()
    return CachedEncodings(config.cache_dir, family.fingerprint)


@contextmanager
def _only_run_in(output_dir: Path, processes: Processes) -> Iterator[None]:
    """Keeps other runs out of a folder; the main process holds the lock for all of this run's."""
    with locked(output_dir / LOCK) if processes.is_main else nullcontext(True) as free:
        if processes.any(not free):
            raise UserError(
                f"`output_dir` is {output_dir}, where another run is at work now; wait for its end, stop it, or choose "
                "another `output_dir`"
            )
        yield


def _refuse_to_take_over(config: RunConfig) -> None:
    if config.resume_from_checkpoint is None and has_checkpoint(config.output_dir / CHECKPOINTS):
        raise UserError(
            f"`output_dir` is {config.output_dir}, which has checkpoints of an earlier run; "
            "set `resume_from_checkpoint: latest` to go on, or choose another `output_dir`"
        )


def _resume(trainer: Trainer) -> None:
    wanted, output_dir = trainer.config.resume_from_checkpoint, trainer.config.output_dir
    if wanted is None:
        return
    checkpoint = open_checkpoint(output_dir / CHECKPOINTS, wanted, RESUME)
    if checkpoint is not None:
        trainer.load_state(checkpoint)
    if not trainer.processes.agree(trainer.step):
        raise UserError(
            f"`output_dir` is {output_dir}, which has other checkpoints on other machines; set it to a folder that "
            "they share"
        )
    if checkpoint is not None and trainer.processes.is_main:
        print(f"going on from {checkpoint.path}")


@contextmanager
def _stop_signals() -> Iterator[list[int]]:
    """A list that SIGINT and SIGTERM are added to, instead of ending the process at once; a second one does end it."""
    received: list[int] = []
    before: dict[int, Any] = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def receive(number: int, _: object) -> None:
        received.append(number)
        signal.signal(number, before[number])

    for number in before:
        signal.signal(number, receive)
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _summary(row: dict[str, float]) -> str:
    """What the bar shows."""
    parts = [f"loss {row['loss']:.4f}"]
    if "implicit_accuracy" in row:
        parts.append(f"accuracy {row['implicit_accuracy']:.2f}")
    return ", ".join([*parts, f"{row['pairs_per_second']:.1f} pairs/s"])
