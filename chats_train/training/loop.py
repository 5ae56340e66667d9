"""The steps of a run: what is reported, measured and kept along the way, and how they end."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager

from tqdm import tqdm

from chats.files import replacing
from chats.words import shown_error

from ..encodings.cache import CachedEncodings
from ..runs.checkpoint import RESUME, open_checkpoint
from ..runs.folder import CHECKPOINTS, PREVIEWS
from ..runs.saving import save_state
from ..support.errors import UserError
from .reports import HELD_OUT, Reports
from .trainer import NotFinite, StepReport, Trainer


def run_steps(trainer: Trainer) -> bool:
    """Takes steps until the last one, or until SIGINT or SIGTERM, which end the run after the step at hand with a
    checkpoint of it; whether it was the last.

    Raises:
        UserError: for a NaN, with the last good checkpoint named.
    """
    config = trainer.config
    with _stop_signals() as stopped:
        if not trainer.processes.is_main:
            return _steps(trainer, stopped, None)
        with Reports(config.output_dir, trainer.step, config.report_to == "tensorboard") as reports:
            return _steps(trainer, stopped, reports)


def _steps(trainer: Trainer, stopped: list[int], reports: Reports | None) -> bool:
    config, processes = trainer.config, trainer.processes
    bar = tqdm(total=config.max_train_steps, initial=trainer.step, unit="step", disable=not processes.is_main)
    halted, first = False, True
    while trainer.step < config.max_train_steps and not halted:
        started = time.perf_counter()
        report = _step(trainer)
        seconds = time.perf_counter() - started
        row = {"step": report.step, **report.metrics, "pairs_per_second": report.pairs / seconds}
        if config.compile and first and processes.is_main:
            bar.write(f"compiled: the first step took {seconds:.0f} s; the next few sizes of a batch take some more")
        first = False
        halted = processes.any(bool(stopped))
        if report.step % config.validation_steps == 0 or report.step == config.max_train_steps:
            row |= {HELD_OUT + name: value for name, value in trainer.validate().items()}
        if reports is not None:
            reports.add(row)
            bar.set_postfix_str(_summary(row))
            bar.update()
        if config.sample_every and report.step % config.sample_every == 0 and trainer.has_models:
            _save_preview(trainer)
        if halted or report.step % config.checkpointing_steps == 0 or report.step == config.max_train_steps:
            _save(trainer, reports)
    bar.close()
    return trainer.step >= config.max_train_steps


def _step(trainer: Trainer) -> StepReport:
    try:
        return trainer.train_step()
    except NotFinite as error:
        good = open_checkpoint(trainer.config.output_dir / CHECKPOINTS, "latest", RESUME)
        way_out = f"go on from {good.path}" if good else "there is no checkpoint yet, start again"
        raise UserError(f"{error}; {way_out}, with a lower `learning_rate` or `mixed_precision: no`") from error
    except RuntimeError as error:
        if not trainer.config.compile or not type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
            raise
        raise UserError(
            f"`compile` is true, but torch could not compile ({shown_error(error)}); set `compile: false`, or install "
            "what it asks for, on a CPU a C++ compiler"
        ) from error


def _save(trainer: Trainer, reports: Reports | None) -> None:
    """A checkpoint; no process goes on before it is there."""
    config = trainer.config
    save_state(config.output_dir / CHECKPOINTS, trainer.state(), config.checkpoints_total_limit, trainer.processes)
    if reports is not None:
        reports.plot_now_and_then()


def _save_preview(trainer: Trainer) -> None:
    """previews/step-….png; the decoder comes back to memory for it and leaves again."""
    drawn = trainer.preview()
    if trainer.processes.is_main:
        with replacing(trainer.config.output_dir / PREVIEWS / f"step-{trainer.step:08d}.png") as temporary:
            drawn.save(temporary, format="png")
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
