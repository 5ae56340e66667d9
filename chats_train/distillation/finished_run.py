"""The run that is distilled: its settings as they were when it trained, and the checkpoint of its pair."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from chats.words import shown

from ..runs.checkpoint import Checkpoint
from ..runs.folder import CONFIG_FILE
from ..runs.trained import open_trained
from ..settings.config import RunConfig
from ..settings.config_file import load_config
from ..support.errors import UserError

# What may have changed since: where things are, how much memory a step takes, and what is drawn along the way.
FREE = frozenset(
    {
        *("output_dir", "cache_dir", "resume_from_checkpoint", "checkpoints_total_limit", "report_to"),
        *("train_batch_size", "gradient_accumulation_steps", "gradient_checkpointing", "memory", "optimizer"),
        "compile",
        *("sample_every", "sample_prompts", "sample_steps"),
    }
)


@dataclass(frozen=True)
class FinishedRun:
    """A run that trained to its end.

    Attributes:
        config: as it stands now.
        trained: as the run itself wrote it; what its pair's files name.
        checkpoint: of its pair.
    """

    config: RunConfig
    trained: RunConfig
    checkpoint: Checkpoint

    @property
    def name(self) -> str:
        """As its pair's files begin."""
        return self.config.output_dir.name


def open_finished_run(path: Path, overrides: Sequence[str], wanted: str) -> FinishedRun:
    """A run by its YAML or its folder.

    Args:
        overrides: as of ``load_config``.
        wanted: `latest`, or a checkpoint's folder.

    Raises:
        UserError: when it has not trained to its end, or its settings are not those that it trained with.
    """
    if path.is_dir():
        if not (path / CONFIG_FILE).is_file():
            raise UserError(
                f"{path} is no run: it has no {CONFIG_FILE}; give the folder of a run that `train` has finished, or "
                "its YAML"
            )
        # A folder that was moved is the same run.
        config = load_config(path / CONFIG_FILE, overrides).model_copy(update={"output_dir": path})
    else:
        config = load_config(path, overrides)
    checkpoint = open_trained(config, wanted)
    trained = load_config(config.output_dir / CONFIG_FILE)
    _require_same(config, trained)
    step = checkpoint.values["step"]
    if wanted == "latest" and step < config.max_train_steps:
        raise UserError(
            f"the run {config.output_dir} is at step {step} of {config.max_train_steps}; let `train` finish it, or "
            "name a checkpoint to distill as it is with `--checkpoint`"
        )
    return FinishedRun(config, trained, checkpoint)


def _require_same(config: RunConfig, trained: RunConfig) -> None:
    for name in type(config).model_fields:
        now, then = getattr(config, name), getattr(trained, name)
        # What the config leaves to the base, the run has filled in.
        left_open = name in ("prediction_type", "null_prompt") and now is None
        if name not in FREE and not left_open and now != then:
            raise UserError(
                f"`{name}` is `{shown(now)}`, but the run {config.output_dir} trained with `{shown(then)}`; set it "
                "back, or give the run's folder instead of a YAML"
            )
