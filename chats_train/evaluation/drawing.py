"""Pictures to compare: each is drawn once and kept under a key, a digest of everything it depends on."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from torch import Tensor
from tqdm import tqdm

from chats.files import replacing

from ..families import Family
from ..runs.members import Members
from ..runs.peers import Peers
from ..sampling.pictures import to_images
from ..sampling.sampler import initial_noise
from ..settings.config import RunConfig
from ..support.errors import UserError
from .conditions import Condition, sample_condition
from .prompts import EvaluationPrompt

# Part of every key: raise it when the same inputs would give other pictures than before.
PICTURE_VERSION = 1
PICTURES_FOLDER = "pictures"
# PNG's own keyword for free text.
PNG_KEYWORD = "Comment"


@dataclass(frozen=True)
class Picture:
    """A picture of one prompt from one seed under one condition, drawn or yet to be drawn at ``path``."""

    condition: Condition
    prompt: EvaluationPrompt
    seed: int
    key: str
    path: Path

    @property
    def drawn(self) -> bool:
        return self.path.exists()


def noise_seed(prompt: str, seed: int) -> int:
    """The seed of :func:`chats_train.sampling.sampler.initial_noise` for a picture: the same in every condition, and
    another for every prompt, so that prompts are independent of each other. 32 bits."""
    return int.from_bytes(hashlib.sha256(f"{seed} {prompt}".encode()).digest()[:4], "big")


def plan_pictures(
    folder: Path,
    config: RunConfig,
    family: Family,
    weights: str,
    conditions: Sequence[Condition],
    prompts: Sequence[EvaluationPrompt],
    seeds: Sequence[int],
    steps: int,
) -> list[Picture]:
    """Every picture of an evaluation, by prompt, seed and condition.

    Args:
        folder: of the evaluation.
        weights: digest of the members' weights.
        steps: of the sampler.
    """
    common = _common(config, family, steps)
    # The base is the same whatever was trained on it.
    shared = {
        "weights": weights,
        **{name: getattr(config, name) for name in ("training_method", "network_alpha", "network_rank")},
    }
    found = []
    for prompt in prompts:
        for seed in seeds:
            for condition in conditions:
                depends = {**common, **condition.weights, "prompt": prompt.text, "seed": noise_seed(prompt.text, seed)}
                key = digest(depends if condition.models == "base" else {**depends, **shared})
                found.append(
                    Picture(condition, prompt, seed, key, folder / PICTURES_FOLDER / condition.folder / f"{key}.png")
                )
    return found


def draw_pictures(
    pictures: Sequence[Picture],
    config: RunConfig,
    family: Family,
    members: Members,
    steps: int,
    batch_size: int,
    progress: bool = True,
    peers: Peers | None = None,
) -> int:
    """Draws those that are not there yet, each in one of the processes, and returns how many they were.

    Prompt by prompt, all conditions of each, so that what an interruption leaves can be compared.

    Args:
        batch_size: pictures of one condition that are sampled at once.
        peers: None for this process alone.

    Raises:
        UserError: when what other processes drew is not in this one's folder.
    """
    peers = peers or Peers()
    missing = [picture for picture in pictures if not picture.drawn]
    # Which are drawn together follows from all of them, not from what is there already: the bits of a picture can
    # depend on its batch.
    chunks = [chunk for chunk in _chunks(pictures, batch_size) if not all(picture.drawn for picture in chunk)]
    peers.wait()  # now all have seen what is missing
    null = family.null_prompt()

    def draw(chunk: list[Picture]) -> int:
        embedded = family.encode_prompt([picture.prompt.text for picture in chunk])
        noise = _noise(chunk, config, family).to(family.device)
        latents = sample_condition(chunk[0].condition, family, members, embedded, null, noise, steps)
        drawn = 0
        for picture, one in zip(chunk, latents, strict=True):
            if not picture.drawn:
                _save(picture, to_images(family.decode_image(one[None]))[0], steps, family.facts.scheduler)
                drawn += 1
        return drawn

    shown = progress and peers.is_main and bool(missing)
    with tqdm(total=len(missing), unit="picture", disable=not shown) as bar:
        for drawn in peers.results(draw, chunks):
            bar.update(drawn)
    peers.wait()
    for picture in missing:
        if not picture.drawn:
            raise UserError(
                f"{picture.path} was drawn by another process and is not there; the folder that `--output` names must "
                "be one that all machines share"
            )
    return len(missing)


def _chunks(pictures: Sequence[Picture], batch_size: int) -> Iterator[list[Picture]]:
    """Batches of one condition each, in about the pictures' order."""
    waiting: dict[Condition, list[Picture]] = {}
    for picture in pictures:
        batch = waiting.setdefault(picture.condition, [])
        batch.append(picture)
        if len(batch) == batch_size:
            yield waiting.pop(picture.condition)
    yield from waiting.values()


def _noise(pictures: Sequence[Picture], config: RunConfig, family: Family) -> Tensor:
    side = config.resolution
    return torch.cat(
        [initial_noise(family, 1, side, side, noise_seed(picture.prompt.text, picture.seed)) for picture in pictures]
    )


def _save(picture: Picture, image: Image.Image, steps: int, scheduler: str) -> None:
    """Writes a picture that says of itself how it was made."""
    made = {
        **picture.condition.weights,
        "prompt": picture.prompt.text,
        "noise_seed": noise_seed(picture.prompt.text, picture.seed),
        "steps": steps,
        "scheduler": scheduler,
    }
    information = PngInfo()
    information.add_itxt(PNG_KEYWORD, json.dumps(made, ensure_ascii=False))
    with replacing(picture.path) as temporary:
        image.save(temporary, format="png", pnginfo=information)


def _common(config: RunConfig, family: Family, steps: int) -> dict[str, Any]:
    """What every picture depends on beside its prompt, noise and condition."""
    common = {
        "version": PICTURE_VERSION,
        "encoders": family.fingerprint,
        "denoiser": family.base_sha256,
        "dtype": str(family.dtype),
        "device": family.device.type,
        "prediction_type": family.prediction_type,
        "noise_levels": hashlib.sha256(family.schedule.sigmas.numpy().tobytes()).hexdigest(),
        "null_prompt": family.null_prompt_kind,
        "resolution": config.resolution,
        "steps": steps,
    }
    if config.base_quantization != "none":
        common["base_quantization"] = config.base_quantization
    # `normal` is not told: every picture was sampled with it before flow models had `simple`, and stays valid.
    return common if family.facts.scheduler == "normal" else {**common, "scheduler": family.facts.scheduler}


def digest(values: dict[str, Any]) -> str:
    """A short digest of settings, hexadecimal; 128 bits."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:32]


def picture_row(picture: Picture, folder: Path) -> dict[str, Any]:
    """What results.jsonl says of a picture."""
    return {
        "picture": picture.path.relative_to(folder).as_posix(),
        "condition": picture.condition.name,
        **asdict(picture.condition),
        "prompt": picture.prompt.text,
        "group": picture.prompt.group,
        "seed": picture.seed,
        "noise_seed": noise_seed(picture.prompt.text, picture.seed),
    }
