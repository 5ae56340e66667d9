"""The steps of a run: what is reported, measured and kept along the way, and how they end."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager

from tqdm import tqdm

from chats.files import replacing

from ..encodings.cache import CachedEncodings
from ..runs.checkpoint import RESUME, open_checkpoint, save_checkpoint
from ..runs.folder import CHECKPOINTS, PREVIEWS
from ..support.errors import UserError
from .reports import HELD_OUT, Reports
from .trainer import NotFinite, StepReport, Trainer


def run_steps(trainer: Trainer) -> bool:
    """Takes steps until the last one, or until SIGINT or SIGTERM, which end the run after the step at hand with a
    checkpoint of it; whether it was the last.

    Raises:
        UserError: for a NaN, with the last good checkpoint named.
    """
    with _stop_signals() as stopped:
        return _steps(trainer, stopped)


def _steps(trainer: Trainer, stopped: list[int]) -> bool:
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
    with replacing(trainer.config.output_dir / PREVIEWS / f"step-{trainer.step:08d}.png") as temporary:
        trainer.preview().save(temporary, format="png")
    if isinstance(trainer.encodings, CachedEncodings):
        trainer.family.release_encoders()


@contextmanager
def _stop_signals() -> Iterator[list[int]]:
    """A list that SIGINT and SIGTERM are added to, instead of ending the process at once; a second one does end it."""
    received: list[int] = []
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def receive(number: int, _: object) -> None:
        received.append(number)
        signal.signal(number, before[signal.Signals(number)])

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
