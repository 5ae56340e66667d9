"""A pair, or one model, whose files were made elsewhere, as something to sample: the authors' published pairs, say."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch

from chats.pair import PairMetadata, check_files

from ..families import Family
from ..layouts.recognition import denoiser_kind
from ..settings.config import CONFIG_VERSION, RunConfig
from ..settings.config_file import config_of
from ..settings.facts import FAMILIES
from ..support.errors import UserError
from .member_files import MemberFile, denoiser_tensors
from .members import DISPREFERRED, PREFERRED, Members
from .subjects import Subject
from .whole_members import make_members

# The paper's, of whose pairs no file says so.
PAPER_RESOLUTION = 1024


def open_pair(preferred: Path, dispreferred: Path, base: str, output: Path, overrides: Iterable[str] = ()) -> Subject:
    """The two members of a pair on the base that they were made from.

    Args:
        preferred, dispreferred: see :class:`.member_files.MemberFile`; both LoRAs, or both whole.
        base: as `pretrained_model` in a config; the family is told by its weights.
        output: where the evaluation goes.
        overrides: ``key=value`` of a config each, for the base and how to sample; `family` for a base on the hub.

    Raises:
        UserError, PairError: when these are no pair, or the base cannot be used.
    """
    files = [MemberFile(preferred, "--pair"), MemberFile(dispreferred, "--pair")]
    metadata = _metadata(files)
    stated = {
        name: value
        for name in ("alpha", "guidance_scale", "resolution", "null_prompt")
        if (value := getattr(metadata, name, None)) is not None
    }
    raw: dict[str, Any] = {
        "version": CONFIG_VERSION,
        "pretrained_model": base,
        "output_dir": str(output),
        # A config must name pairs; none are read.
        "data": {"path": str(output)},
        # As the paper samples; the authors sample with the encoded empty prompt, which is no family's own convention.
        "mixed_precision": "bf16",
        "null_prompt": "encoded_empty",
        "resolution": PAPER_RESOLUTION,
        **stated,
    }
    if not any(override.startswith("family=") for override in overrides):
        raw["family"] = _family_of(base)
    return open_files(f"{preferred.name} and {dispreferred.name}", files, config_of(raw, overrides))


def open_files(name: str, files: Sequence[MemberFile], config: RunConfig) -> Subject:
    """One model, or the two of a pair, over a config's base.

    Args:
        name: for people.
        files: the preferred, or the only one, first.
        config: of another subject on the same base.

    Raises:
        UserError: when one is a LoRA and the other a whole model.
    """
    kinds = {file.kind == "lora" for file in files}
    if len(kinds) > 1:
        raise UserError(
            f"{files[0]} is a {files[0].kind} file and {files[1]} a {files[1].kind} one; give two LoRAs, or two whole "
            "models (`extract` makes LoRAs of whole ones)"
        )
    # Weights are held in the precision that they are sampled in.
    dtype = "bf16" if config.mixed_precision == "bf16" else "fp32"
    method = "lora" if kinds.pop() else "full"
    config = config.model_copy(
        update={"training_method": method, "weight_dtype": dtype, "gradient_checkpointing": False}
    )
    digest = hashlib.sha256(" ".join(file.digest for file in files).encode()).hexdigest()
    load = _lora_members if method == "lora" else _whole_members
    return Subject(name, config, digest, len(files), lambda family: load(config, family, files), is_run=False)


def _metadata(files: Sequence[MemberFile]) -> PairMetadata | None:
    """What a pair's files say of it; what is wrong with them as a pair is said."""
    if all(file.path.is_file() for file in files):
        metadata, warnings = check_files(*(file.path for file in files))
        for warning in warnings:
            print(f"note: {warning}", file=sys.stderr)
        return metadata
    if files[0].path.samefile(files[1].path):
        raise UserError(f"`--pair` names {files[0].path} twice; give the preferred member and the dispreferred one")
    return files[0].metadata or files[1].metadata


def _family_of(base: str) -> str:
    """The family of a base on disk, by its denoiser's weights."""
    path = Path(base).expanduser()
    if not path.exists():
        raise UserError(
            f"`--base` is {base}, which is not on this disk, so its family is not known; add `--set family=NAME` "
            f"({', '.join(FAMILIES)}) to fetch it from the hub"
        )
    found = denoiser_kind(denoiser_tensors(path, "--base"))
    if found is None or found.family is None:
        raise UserError(
            f"`--base` is {base}, {found or 'of a kind not known here'}; if it is one of {', '.join(FAMILIES)} all the "
            "same, add `--set family=NAME`"
        )
    return found.family


def _whole_members(config: RunConfig, family: Family, files: Sequence[MemberFile]) -> Members:
    _note_another_base(family, files)
    members = make_members(config, family, len(files), True, family.device)
    for module, file in zip(members.modules, files, strict=True):
        module.load_state_dict(file.whole(family))
    return members


def _lora_members(config: RunConfig, family: Family, files: Sequence[MemberFile]) -> Members:
    """Adapters of one rank on all layers that either file changes: what a file lacks is zeros, which add nothing."""
    _note_another_base(family, files)
    factors = [file.factors(family) for file in files]
    modules = sorted({module for each in factors for module in each})
    rank = max(down.shape[0] for each in factors for down, _ in each.values())
    update = {"network_rank": rank, "network_alpha": float(rank), "network_target_modules": modules}
    members = make_members(config.model_copy(update=update), family, len(files), True, family.device)
    state = {name: torch.zeros_like(value) for name, value in members.state().items()}
    for name, own in zip((PREFERRED, DISPREFERRED), factors, strict=False):
        for module, (down, up) in own.items():
            width = down.shape[0]
            state[f"{name}.{module}.lora_A.{name}.weight"][:width] = down
            state[f"{name}.{module}.lora_B.{name}.weight"][:, :width] = up
    members.load_state(state, "give LoRAs of layers that the base has")
    return members


def _note_another_base(family: Family, files: Sequence[MemberFile]) -> None:
    for file in files:
        stated = file.metadata and file.metadata.base_sha256
        if stated and stated != family.base_sha256:
            print(
                f"note: {file} says that it was trained on another file than this base (`chats.base_sha256`); the "
                "same weights in another form are another file",
                file=sys.stderr,
            )
