"""A teacher's own pictures as data for its student: what it draws of the pairs' prompts, and on which paths."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from chats.files import replacing
from chats_train.data.pairs import PairSample
from chats_train.demo.world import RESOLUTION
from chats_train.distillation.teacher import TaughtBatch, TaughtGradients
from chats_train.encodings.cache import CachedEncodings, EncodedPair
from chats_train.families import Family
from chats_train.runs.members import DISPREFERRED, PREFERRED, Members
from chats_train.sampling.sampler import SamplingSettings, initial_noise, sample_pair
from chats_train.training.gradients import Batch

NOISE_SEED, AT_ONCE = 12000, 120


@dataclass(frozen=True)
class OwnData:
    """What a teacher drew of the pairs' prompts, a picture for each.

    Attributes:
        latents: of the pictures, [pairs, channels, height, width].
        points: what the network was asked on the way, [steps, pairs, channels, height, width].
        timesteps: of the points, [steps, pairs].
        tokens: the prompts' embeddings, [pairs, ...].
    """

    latents: Tensor
    points: Tensor
    timesteps: Tensor
    tokens: Tensor


def own_data(
    path: Path,
    family: Family,
    members: Members,
    encodings: CachedEncodings,
    samples: Sequence[PairSample],
    settings: SamplingSettings,
    seed: int,
) -> OwnData:
    """Draws it, or reads what an earlier call drew into ``path``."""
    if path.exists():
        return OwnData(**load_file(path))
    preferred, asked = members.denoiser(PREFERRED), []

    def recorded(noisy: Tensor, timesteps: Tensor, **others: Any) -> Any:
        asked.append((noisy, timesteps))
        return preferred(noisy, timesteps, **others)

    tokens = torch.stack([encodings.prompt(sample.prompt)["tokens"] for sample in samples])
    noise = initial_noise(family, len(samples), RESOLUTION, RESOLUTION, NOISE_SEED + seed)
    null = family.null_of({"tokens": encodings.prompt("")["tokens"][None]})
    drawn, ways = [], []
    for part in range(0, len(samples), AT_ONCE):
        chunk = slice(part, part + AT_ONCE)
        prompt = {"tokens": tokens[chunk]}
        drawn.append(
            sample_pair(family, recorded, members.denoiser(DISPREFERRED), prompt, null, noise[chunk], settings)
        )
        ways.append(tuple(torch.stack(each) for each in zip(*asked, strict=True)))
        asked.clear()
    points, timesteps = (torch.cat(each, dim=1).contiguous() for each in zip(*ways, strict=True))
    found = OwnData(torch.cat(drawn), points, timesteps, tokens)
    path.parent.mkdir(exist_ok=True)
    with replacing(path) as temporary:
        save_file(vars(found), temporary)
    return found


class OwnPictures(CachedEncodings):
    """The pairs with the teacher's own picture of a prompt in place of the chosen one."""

    def __init__(self, folder: Path, fingerprint: str, samples: Sequence[PairSample], own: OwnData):
        super().__init__(folder, fingerprint)
        self.own = {sample.id: latents for sample, latents in zip(samples, own.latents, strict=True)}

    def pair(self, sample: PairSample) -> EncodedPair:
        return replace(super().pair(sample), chosen=self.own[sample.id])


class OwnPaths(TaughtGradients):
    """A student is asked points of the teacher's paths, drawn at random: noise levels and prompts differ in a batch."""

    def __init__(self, own: OwnData, seed: int, *arguments: Any, **named: Any):
        super().__init__(*arguments, **named)
        self.own, self.generator = own, torch.Generator().manual_seed(seed)

    def taught(self, batch: Batch) -> TaughtBatch:
        steps, pairs = self.own.timesteps.shape
        step = torch.randint(steps, (batch.size,), generator=self.generator)
        pair = torch.randint(pairs, (batch.size,), generator=self.generator)
        side = replace(
            batch.chosen,
            noisy=self.own.points[step, pair],
            timesteps=self.own.timesteps[step, pair],
            prompt={"tokens": self.own.tokens[pair]},
        )
        return super().taught(replace(batch, chosen=side))
