"""A finished checkpoint, and what it is opened for: members to sample with, a grid of pictures, the pair's files."""

from __future__ import annotations

from pathlib import Path

from PIL import Image
from torch import Tensor

from chats.objective import OBJECTIVES

from ..families import Family
from ..sampling.sampler import Form, known_form
from ..settings.config import RunConfig
from ..settings.facts import FAMILIES
from ..support.errors import UserError
from .checkpoint import READ, Checkpoint, open_checkpoint
from .folder import CHECKPOINTS
from .members import Members
from .negative_file import read_negative
from .opening import open_family, settled
from .pair_export import export_pair
from .previews import preview
from .probe_file import read_probe
from .processes import Processes
from .whole_members import make_members


def open_trained(config: RunConfig, wanted: str) -> Checkpoint:
    """A run's checkpoint (``latest`` or a folder), to read its weights.

    Raises:
        UserError: when there is no such checkpoint, or it cannot be used.
    """
    folder = config.output_dir / CHECKPOINTS
    checkpoint = open_checkpoint(folder, wanted, READ)
    if checkpoint is None:
        raise UserError(f"{folder} has no whole checkpoint; train first, or name one's folder with `--checkpoint`")
    return checkpoint


def trained_members(
    config: RunConfig, family: Family, checkpoint: Checkpoint, *, models: int | None = None, with_reference: bool = True
) -> Members:
    """The members of a checkpoint, with the base as their reference, on the family's device.

    Args:
        models: 1 for the preferred alone; None for all that were trained.
        with_reference: whole models need memory for it.

    Raises:
        UserError: when the checkpoint is of other settings.
    """
    weights = _weights(config, checkpoint)
    members = make_members(config, family, models or OBJECTIVES[config.objective].models, with_reference, family.device)
    wanted = {key: value for key, value in weights.items() if models is None or key.split(".", 1)[0] in members.names}
    members.load_state(wanted, checkpoint.purpose.way_out)
    return members


def sample(config: RunConfig, wanted: str, prompts: list[str], form: Form | None) -> Image.Image:
    """A grid of the base with CFG and a checkpoint's pair with CHATS, a row for each prompt.

    Raises:
        UserError: when there is no such checkpoint, or the family has no such form.
    """
    known_form(FAMILIES[config.family], form, config.alpha)
    device = Processes().device
    family = open_family(config, device)
    members = trained_members(config, family, open_trained(config, wanted))
    null = family.null_prompt()
    encoded = [(family.encode_prompt([text]), null) for text in prompts]
    return preview(config, family, members, encoded, device, form)


def export(config: RunConfig, wanted: str, folder: Path | None = None, dtype: str = "fp16") -> list[Path]:
    """Writes the pair of a checkpoint (``latest`` or a folder) as files that ComfyUI loads; returns them.

    Raises:
        UserError: when there is no such checkpoint.
    """
    checkpoint = open_trained(config, wanted)
    weights, step = _weights(config, checkpoint), checkpoint.values["step"]
    folder = folder or config.output_dir
    folder.mkdir(parents=True, exist_ok=True)
    family = open_family(config, "cpu")
    probe, fingerprint = read_probe(config.output_dir, step), checkpoint.values["dataset_fingerprint"]
    negative = read_negative(config.output_dir, checkpoint)
    return export_pair(settled(config, family), family, weights, step, fingerprint, folder, dtype, probe, negative)


def _weights(config: RunConfig, checkpoint: Checkpoint) -> dict[str, Tensor]:
    weights = checkpoint.weights()
    method = "lora" if any(".lora_A." in name for name in weights) else "full"
    if method != config.training_method:
        raise UserError(
            f"`training_method` is {config.training_method}, but the checkpoint {checkpoint.path} was trained with "
            f"{method}; set it to that"
        )
    return weights
