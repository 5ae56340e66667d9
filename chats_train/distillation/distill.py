"""A whole distillation: the finished run, teacher and student, the trainer's steps, the one file."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from chats.distilled import USAGE, DistilledMetadata

from ..check.estimate import checkpoint_bytes, disk_of, folder_bytes
from ..check.readiness import model_size
from ..data import PairDataset
from ..encodings.cache import PairEncodings
from ..families import Family
from ..runs.adapters import adapter_weights
from ..runs.checkpoint import has_checkpoint
from ..runs.folder import CHECKPOINTS
from ..runs.members import Members
from ..runs.opening import open_family, settled
from ..runs.pair_export import export_model, pair_id
from ..runs.processes import Processes
from ..runs.trained import trained_members
from ..settings.config import RunConfig
from ..support.amounts import bytes_text
from ..support.errors import UserError
from ..support.jsonl import read_rows
from ..training.loop import run_steps
from ..training.reports import HELD_OUT, METRICS_FILE
from ..training.train import only_run_in, open_data, open_encodings, resume
from ..training.trainer import Trainer, null_prompt
from .finished_run import FinishedRun, open_finished_run
from .settings import DistillSettings, claim, record, record_sha256, student_config
from .student import STUDENT, make_student, start_from_preferred
from .teacher import TaughtGradients

FOLDER = "distilled"


def distill(
    path: Path,
    overrides: Sequence[str],
    settings: DistillSettings,
    checkpoint: str = "latest",
    folder: Path | None = None,
    dtype: str = "fp16",
) -> str:
    """Makes one model out of a finished run's pair and its guidance; begun again, it goes on where it was.

    Args:
        path: the run's YAML or folder.
        overrides: of the YAML's settings.
        checkpoint: of the run, ``latest`` or a folder.
        folder: where the distillation lives; None for one in the run's.
        dtype: fp32, fp16 or bf16, of the file.

    Returns:
        one line that says how it ended.

    Raises:
        UserError: for what the user can mend.
    """
    processes = Processes()
    run = open_finished_run(path, overrides, checkpoint)
    settings = settings.filled_in(run)
    folder = folder or run.config.output_dir / FOLDER
    with only_run_in(folder, processes, "--output"):
        return _distill(run, settings, folder, processes, dtype)


def _distill(run: FinishedRun, settings: DistillSettings, folder: Path, processes: Processes, dtype: str) -> str:
    family = open_family(run.config, processes.device)
    dataset = open_data(run.config, processes)
    config = settled(student_config(settings, run.config, family, folder, processes.count), family)
    pair = pair_id(run.trained, family, run.checkpoint.values["step"], run.checkpoint.values["dataset_fingerprint"])
    recorded = record(settings, run, pair, dataset.fingerprint)
    if processes.is_main:
        claim(folder, recorded)
        _require_room(config, family, folder)
    processes.wait()
    encodings = open_encodings(run.config, family, dataset, processes, use_cache=True)
    trainer = make_trainer(run, settings, config, family, dataset, encodings, processes)
    resume(trainer)
    if not run_steps(trainer):
        return f"stopped after step {trainer.step}; start it again to go on"
    if not processes.is_main:
        return f"distilled in {trainer.step} steps"
    metadata = _metadata(run, settings, family, recorded, trainer.step)
    file = folder / f"{run.name}_{folder.name}.safetensors"
    weights = adapter_weights(trainer.weights(), STUDENT)
    export_model(config, family, weights, file, metadata, file.stem, dtype)
    return f"distilled in {trainer.step} steps: {file}; sample it at {USAGE}{_learned(folder)}"


def make_trainer(
    run: FinishedRun,
    settings: DistillSettings,
    config: RunConfig,
    family: Family,
    dataset: PairDataset,
    encodings: PairEncodings,
    processes: Processes,
    taught: Callable[..., TaughtGradients] = TaughtGradients,
) -> Trainer:
    """A distillation before its first step.

    Args:
        settings: filled in.
        config: the student's.
        taught: makes the gradients, as their class does.
    """
    teacher = _teacher(run, settings, family)
    student = make_student(config, family, teacher, run.config.training_method)
    if not has_checkpoint(config.output_dir / CHECKPOINTS):
        kept = start_from_preferred(student, teacher, config.training_method, run.config.training_method, settings.rank)
        if kept < 1 - 1e-6 and processes.is_main:
            print(f"the LoRA starts with {100 * kept:.1f} % of the preferred model's difference from the base (energy)")
    gradients = taught(
        family,
        student,
        teacher,
        settings.guidance(),
        null_prompt(family, encodings, processes.device),
        processes.device,
        mixed_precision=config.mixed_precision,
    )
    return Trainer(config, family, dataset, encodings, processes, gradients)


def _teacher(run: FinishedRun, settings: DistillSettings, family: Family) -> Members:
    """The pair's models that the guidance needs; a whole base only where no LoRA's is there to ask."""
    base_guides = settings.negative == "base"
    return trained_members(
        run.config,
        family,
        run.checkpoint,
        models=1 if base_guides else None,
        with_reference=base_guides and settings.method == "full",
    )


def _metadata(
    run: FinishedRun, settings: DistillSettings, family: Family, recorded: dict[str, Any], step: int
) -> DistilledMetadata:
    return DistilledMetadata(
        pair_id=recorded["pair_id"],
        pair_name=run.name,
        pair_step=recorded["pair_step"],
        form=settings.form,
        negative=settings.negative,
        guidance_scale=settings.guidance_scale,
        alpha=settings.alpha,
        null_prompt=family.null_prompt_kind,
        start_percent=settings.start_percent,
        end_percent=settings.end_percent,
        base_name=Path(run.config.pretrained_model).name,
        base_sha256=family.base_sha256,
        prediction_type=family.prediction_type,
        resolution=run.config.resolution,
        step=step,
        settings_sha256=record_sha256(recorded),
        dataset_fingerprint=recorded["dataset_fingerprint"],
    )


def _require_room(config: RunConfig, family: Family, folder: Path) -> None:
    """Raises UserError where checkpoints and file cannot fit."""
    size = model_size(config, family)
    file = 4 * (size.adapter if config.training_method == "lora" else size.denoiser)
    # One more than are kept: the new one is whole before the oldest goes.
    wanted = checkpoint_bytes(config, size) * (1 + (config.checkpoints_total_limit or 0)) + file
    _, free = disk_of(folder)
    if (missing := wanted - folder_bytes(folder) - free) > 0:
        raise UserError(f"`--output` is {folder}, which lacks {bytes_text(missing)}; make room or choose another disk")


def _learned(folder: Path) -> str:
    """What the last measurement says of the student, as the end of a sentence; nothing without held-out pairs."""
    measured = [row for row in read_rows(folder / METRICS_FILE) if HELD_OUT + "preferred_error" in row]
    if not measured or not measured[-1][HELD_OUT + "preferred_error"]:
        return ""
    learned = 1 - measured[-1][HELD_OUT + "loss"] / measured[-1][HELD_OUT + "preferred_error"]
    return f"; on held-out pairs it has learned {100 * learned:.0f} % of what the guidance adds (squared error)"
