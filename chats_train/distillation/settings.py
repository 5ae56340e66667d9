"""What a distillation can be asked, what follows from the run, and that one folder holds one distillation."""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from chats.distillation import Guidance, Negative
from chats.files import write_text
from chats.guidance import Form
from chats.objective import OBJECTIVES
from chats.probe import proxy_goes_the_way
from chats.words import shown

from ..families import Family
from ..layouts.formats import lora_names
from ..runs.checkpoint import has_checkpoint
from ..runs.folder import CHECKPOINTS
from ..runs.probe_file import read_probe
from ..sampling.sampler import known_form
from ..settings.config import RunConfig
from ..settings.facts import FAMILIES
from ..support.errors import UserError
from .finished_run import FinishedRun

SETTINGS_FILE = "distillation.json"
LEARNING_RATES = {"lora": 2e-3, "full": 3e-4}
# Optimizer steps between checkpoints and between measurements, and checkpoints kept.
EVERY, KEPT = 20, 2


@dataclass(frozen=True)
class DistillSettings:
    """What the user states; None is what follows from the run.

    Attributes:
        form, negative, guidance_scale, alpha, start_percent, end_percent: how the teacher is sampled, see
            :class:`Guidance`.
        method: `lora` or `full`, of the student.
        rank: of a LoRA.
        layers: of a LoRA; `all` is every linear layer and convolution, `pair` those of the pair's LoRAs.
        steps, learning_rate, seed: of the training.
        batch_size: pairs in a step.
    """

    form: Form | None = None
    negative: Negative = "dispreferred"
    guidance_scale: float | None = None
    alpha: float | None = None
    start_percent: float = 0.0
    end_percent: float = 1.0
    method: Literal["lora", "full"] | None = None
    rank: int = 16
    layers: Literal["pair", "all"] = "all"
    steps: int = 160
    learning_rate: float | None = None
    batch_size: int = 16
    seed: int | None = None

    def filled_in(self, run: FinishedRun) -> DistillSettings:
        """With everything stated.

        Raises:
            UserError: for settings that do not fit together, or not the run.
        """
        config = run.config
        method = self.method or config.training_method
        alpha = self.alpha
        if alpha is None:
            # Beside the untouched base, α was measured at 0 alone.
            alpha = 0.0 if self.negative == "base" else config.alpha
        filled = replace(
            self,
            method=method,
            alpha=alpha,
            form=known_form(FAMILIES[config.family], self.form or _form(run, alpha), alpha),
            guidance_scale=config.guidance_scale if self.guidance_scale is None else self.guidance_scale,
            # With the run's seed the pairs that it held out are held out here.
            seed=config.seed if self.seed is None else self.seed,
            learning_rate=LEARNING_RATES[method] if self.learning_rate is None else self.learning_rate,
        )
        _check(filled, config)
        return filled

    def guidance(self) -> Guidance:
        """Of settings that are filled in."""
        assert self.form is not None
        assert self.guidance_scale is not None
        assert self.alpha is not None
        return Guidance(self.form, self.negative, self.guidance_scale, self.alpha, self.start_percent, self.end_percent)


def _form(run: FinishedRun, alpha: float) -> Form:
    """Proxy, unless the family has none or the run's own probe says that it does not stand for the exact form. At α = 0
    they are equal."""
    if alpha and "proxy" not in FAMILIES[run.config.family].forms:
        return "exact"
    probe = read_probe(run.config.output_dir, run.checkpoint.values["step"])
    if alpha == 0 or not probe or proxy_goes_the_way(probe["proxy_cosine"], probe["proxy_relative_error"]):
        return "proxy"
    return "exact"


def _check(settings: DistillSettings, config: RunConfig) -> None:
    """Raises UserError for the first setting that is wrong."""
    for option, value, least in (
        ("--rank", settings.rank, 1),
        ("--steps", settings.steps, 1),
        ("--batch-size", settings.batch_size, 1),
        ("--seed", settings.seed, 0),
        ("--guidance-scale", settings.guidance_scale, 0),
    ):
        if value is None or not least <= value < math.inf:
            raise UserError(f"`{option}` is {value:g}; give {least} or more")
    if not math.isfinite(settings.alpha or 0):
        raise UserError(f"`--alpha` is {settings.alpha:g}; give a number, such as 0.5")
    if not 0 < (settings.learning_rate or 0) < math.inf:
        raise UserError(f"`--learning-rate` is {settings.learning_rate:g}; give a number above 0, such as 2e-3")
    if not 0 <= settings.start_percent < settings.end_percent <= 1:
        raise UserError(
            f"`--start-percent` is {settings.start_percent:g} and `--end-percent` {settings.end_percent:g}; give "
            "shares of the noise schedule, the start before the end, within 0 and 1"
        )
    if settings.method == "full" and config.training_method == "lora":
        raise UserError("`--method` is full, but the run trained LoRAs, which are distilled into one: leave it out")
    if settings.negative == "dispreferred" and OBJECTIVES[config.objective].models == 1:
        raise UserError(
            f"the run's `objective` is {config.objective}, which trains no dispreferred model; give `--negative base`"
        )


def student_config(
    settings: DistillSettings, config: RunConfig, family: Family, folder: Path, processes: int
) -> RunConfig:
    """The distillation as the settings of a training: of one model, on the run's pairs, in a folder of its own.

    Args:
        settings: filled in.
        config: the run's.
        processes: how many share a step.

    Raises:
        UserError: when a step cannot be shared.
    """
    if settings.batch_size % processes:
        raise UserError(
            f"`--batch-size` is {settings.batch_size}, which {processes} processes cannot share; give a multiple of "
            "their number"
        )
    share = settings.batch_size // processes
    # As many pairs at once as the run had, which its memory is known to hold.
    at_once = max(size for size in range(1, min(share, config.train_batch_size) + 1) if share % size == 0)
    of_student: dict[str, Any] = {
        "output_dir": folder,
        "objective": "supervised_chosen",
        "training_method": settings.method,
        "max_train_steps": settings.steps,
        "train_batch_size": at_once,
        "gradient_accumulation_steps": share // at_once,
        "seed": settings.seed,
        "learning_rate": settings.learning_rate,
        "scale_lr": False,
        "lr_scheduler": "cosine",
        "lr_warmup_steps": 0,
        "ema_decay": None,
        "reference_draws": None,
        "compile": False,
        "checkpointing_steps": EVERY,
        "checkpoints_total_limit": KEPT,
        "validation_steps": EVERY,
        "resume_from_checkpoint": "latest",
        # One preview, at the end.
        "sample_every": settings.steps if config.sample_prompts else 0,
    }
    if settings.method == "lora":
        of_student |= _network(settings, config, family)
    return config.model_copy(update=of_student)


def _network(settings: DistillSettings, config: RunConfig, family: Family) -> dict[str, Any]:
    """The student's LoRA, scaled as the pair's are."""
    of_pair = config.training_method == "lora"
    scale = config.network_alpha / config.network_rank if of_pair else 1.0
    network = {"network_rank": settings.rank, "network_alpha": scale * settings.rank}
    if of_pair and settings.layers == "pair":
        return network
    # Whole models differ in every layer.
    shapes = family.source.shapes(family.facts.denoiser_part)
    layers = [name for name in lora_names(family.name, shapes) if len(shapes[f"{name}.weight"]) > 1]
    return network | {"network_target_modules": layers}


def record(settings: DistillSettings, run: FinishedRun, pair: str, fingerprint: str) -> dict[str, Any]:
    """All that a distillation depends on, as its folder keeps it.

    Args:
        pair: the pair's id.
        fingerprint: of the data set.
    """
    return {
        "pair_id": pair,
        "pair_step": run.checkpoint.values["step"],
        "pair_weights_sha256": run.checkpoint.weights_sha256,
        "dataset_fingerprint": fingerprint,
        "optimizer": run.config.optimizer,
        **asdict(settings),
    }


def record_sha256(recorded: dict[str, Any]) -> str:
    """Digest of a distillation, hexadecimal."""
    return hashlib.sha256(json.dumps(recorded, sort_keys=True).encode()).hexdigest()


def claim(folder: Path, recorded: dict[str, Any]) -> None:
    """Writes what a folder holds, unless it holds something else that could be lost.

    Raises:
        UserError: naming the first setting that differs.
    """
    path, way_out = folder / SETTINGS_FILE, "choose another folder with `--output`"
    if has_checkpoint(folder / CHECKPOINTS):
        if not path.is_file():
            raise UserError(f"`--output` is {folder}, which has checkpoints of another run; {way_out}")
        try:
            before = dict(json.loads(path.read_text(encoding="utf-8")))
        except (ValueError, TypeError) as error:
            raise UserError(f"{path} is damaged; remove {folder}, or {way_out}") from error
        for name, value in recorded.items():
            if before.get(name) != value:
                raise UserError(
                    f"`--output` is {folder}, which holds a distillation with `{name}` {shown(before.get(name))}, and "
                    f"this one has {shown(value)}; give the same, or {way_out}"
                )
    write_text(path, json.dumps(recorded, indent=2) + "\n")
