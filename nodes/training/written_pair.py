"""The two files of a trained pair in ComfyUI's `loras`, and the same LoRAs on the MODEL."""

from __future__ import annotations

import hashlib
import json
import uuid
from pathlib import Path
from typing import Any

import comfy.lora
import folder_paths
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ...chats import guidance
from ...chats.pair import NullPrompt, PairError, PairMetadata, PredictionType, read_metadata, write_member
from ..loading.loaders import with_metadata
from .adapters import MEMBERS, lora_file
from .curve import HELD_OUT
from .saved_run import RunError, SavedRun
from .writing import writing

FOLDER = "loras"
WEIGHTS = "weights."


def pair_metadata(
    run: SavedRun,
    *,
    base_name: str,
    dataset: str,
    pairs: int,
    predicted: PredictionType,
    null: NullPrompt | None,
    base_file: str | None = None,
) -> PairMetadata:
    """What the files say of themselves, the preferred's; the same weights make the same pair."""
    facts = run.facts
    accuracies = [row[key] for row in run.history if (key := HELD_OUT + "implicit_accuracy") in row]
    return PairMetadata(
        MEMBERS[0],
        pair_id=uuid.uuid5(uuid.NAMESPACE_URL, f"{facts_sha256(facts)} {run.step}").hex,
        base_name=base_name,
        prediction_type=predicted,
        null_prompt=null,
        null_prompt_prob=facts["null_prompt_prob"],
        alpha=guidance.DEFAULT_ALPHA,
        guidance_scale=guidance.DEFAULT_GUIDANCE_SCALE,
        beta=facts["beta"],
        resolution=facts["resolution"],
        step=run.step,
        config_sha256=facts_sha256(facts),
        dataset_fingerprint=facts["dataset"],
        dataset_name=dataset,
        dataset_pairs=pairs,
        held_out_accuracy=accuracies[-1] if accuracies else None,
        base_file=base_file,
    )


def member_paths(name: str) -> list[Path]:
    """Where the members of a pair are written."""
    return [Path(folder_paths.get_folder_paths(FOLDER)[0]) / f"{name}_{member}.safetensors" for member in MEMBERS]


def require_free(name: str, dataset: str, facts: dict[str, Any], step: int) -> None:
    """Refuses to write over files that another run, or somebody else, has made, or that hold more steps of this one.

    Args:
        step: that would be written.

    Raises:
        RunError: naming the file.
    """
    for path in member_paths(name):
        if not path.exists():
            continue
        made = _stated(path)
        own = made is not None and (made.config_sha256, made.dataset_name) == (facts_sha256(facts), dataset)
        require_own(name, path, own)
        if made is not None and made.step is not None and made.step > step:
            raise RunError(
                f"`steps` asks for a pair of step {step}, and {path} is of step {made.step} of the same training, "
                f"which is not written over; set `steps` to {made.step} or more, take another `name`, or move the file"
            )


def require_own(name: str, path: Path, own: bool) -> None:
    """Raises RunError for a file that is there and not this run's own."""
    if not own:
        raise RunError(
            f"`name` is {name}, and {path} is there already, made by something else than this run; choose another "
            "`name`, or move that file"
        )


def write_pair(name: str, run: SavedRun, metadata: PairMetadata) -> bool:
    """Writes both files, each whole or not at all, where they are not there as they should be; whether one was not.

    Raises:
        NotWritten: when the disk does not take them; the run's state is kept.
        RunError: where somebody else has made such files meanwhile.
    """
    assert metadata.dataset_name is not None
    require_free(name, metadata.dataset_name, run.facts, run.step)
    written = False
    for path, member in zip(member_paths(name), MEMBERS, strict=True):
        stated = PairMetadata(**{**vars(metadata), "member": member})
        if not path.exists() or read_metadata(path) != stated:
            written = True
            with writing(path.parent):
                write_member(path, lora_file(weights(run), member), stated, modelspec(path.stem, stated.resolution))
    return written


def on_model(model: ModelPatcher, run: SavedRun, metadata: PairMetadata) -> tuple[ModelPatcher, ...]:
    """The MODEL as the preferred and as the dispreferred member, as loading the files gives them."""
    return with_metadata(metadata, *(with_trained(model, run, member) for member in MEMBERS))


def with_trained(model: ModelPatcher, run: SavedRun, whose: str) -> ModelPatcher:
    """The MODEL with one of a run's LoRAs on it."""
    places, patched = comfy.lora.model_lora_keys_unet(model.model, {}), model.clone()
    patched.add_patches(comfy.lora.load_lora(lora_file(weights(run), whose), places), 1.0)
    return patched


def weights(run: SavedRun) -> dict[str, Tensor]:
    """Those that trained, as :meth:`.adapters.Adapters.parameters` names them."""
    return {key.removeprefix(WEIGHTS): value for key, value in run.tensors.items() if key.startswith(WEIGHTS)}


def _stated(path: Path) -> PairMetadata | None:
    try:
        return read_metadata(path)
    except PairError:
        return None


def facts_sha256(facts: dict[str, Any]) -> str:
    """Digest of what a run was begun with, hexadecimal."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def modelspec(title: str, resolution: int | None) -> dict[str, str]:
    """Header entries of a LoRA's file that other programs read."""
    return {
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.implementation": "https://github.com/comfyanonymous/ComfyUI",
        "modelspec.title": title,
        "modelspec.resolution": f"{resolution}x{resolution}",
    }
