"""Why a pair does what it does, in numbers: how far its members moved from the base, where, and which way."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import torch
from torch import Tensor

from chats_train.demo.samplers import base_sampler, sample_pictures
from chats_train.demo.world import RESOLUTION, prompt_sets
from chats_train.families import Denoiser, Family
from chats_train.runs.members import DISPREFERRED, PREFERRED, Members
from chats_train.sampling.probe import PROBED_SHARES, probe_proxy
from chats_train.sampling.sampler import SamplingSettings, initial_noise

from .plan import ALPHA

PROMPTS, SEED = 24, 7000
NULL = "null"


@torch.no_grad()
def mechanism(family: Family, members: Members, whole: bool) -> dict[str, Any]:
    """On pictures that the base draws of dev prompts, noised as in training. A *shift* is a member's prediction minus
    the base's, given the prompt or the null prompt.

    Args:
        whole: whether the members are whole models, whose weights can be held against the base's.

    Returns:
        `shifts`: root mean squares of each member's shifts, the prompt's and the null prompt's, by noise level and in
        the mean. `cosines` between shifts, means over noise levels. `weights`: how far each member's weights are from
        the base's, as a share of their norm, and which parts have what share of the squared way. `proxy`: how well the
        proxy form stands for the exact one.
    """
    base = family.load_denoiser()
    prompts = list(prompt_sets().dev[:: len(prompt_sets().dev) // PROMPTS][:PROMPTS])
    sampler = base_sampler(family, base, SamplingSettings(10, guidance_scale=3.0))
    latents = family.encode_image(sample_pictures(family, sampler, prompts, SEED))
    noise = initial_noise(family, len(prompts), RESOLUTION, RESOLUTION, SEED + 1)
    embedded, null = family.encode_prompt([prompt.text for prompt in prompts]), family.null_prompt()
    models: dict[str, Denoiser] = {name: members.denoiser(name) for name in members.names}
    lengths: dict[str, list[float]] = defaultdict(list)
    cosines: dict[str, list[float]] = defaultdict(list)
    for share in PROBED_SHARES:
        timesteps = family.sample_timesteps(torch.full((len(prompts),), share), latents.shape[-2:])
        z = family.add_noise(latents, noise, timesteps)
        given = {"prompt": embedded, NULL: null}
        before = {kind: family.predict(base, z, timesteps, each) for kind, each in given.items()}
        shifts = {
            f"{name} {kind}": family.predict(model, z, timesteps, each) - before[kind]
            for name, model in models.items()
            for kind, each in given.items()
        }
        for name, shift in shifts.items():
            lengths[name].append(shift.square().mean().sqrt().item())
        for left, right in compared(members.names):
            cosines[f"{left}, {right}"].append(cosine(shifts[left], shifts[right]))
    found: dict[str, Any] = {
        "shifts": {name: [round(each, 5) for each in values] for name, values in lengths.items()},
        "cosines": {name: round(sum(values) / len(values), 4) for name, values in cosines.items()},
    }
    if whole:
        found["weights"] = {name: way(base, members.denoiser(name)) for name in members.names}
    if DISPREFERRED in members.names:
        probe = probe_proxy(family, models[DISPREFERRED], latents, noise, embedded, null, ALPHA)
        found["proxy"] = {name: round(value, 4) for name, value in probe.means.items()}
    return found


def compared(names: tuple[str, ...]) -> list[tuple[str, str]]:
    """Which shifts: a member's with and without prompt, and those of the two members."""
    pairs = [(f"{name} prompt", f"{name} {NULL}") for name in names]
    if DISPREFERRED in names:
        pairs += [(f"{PREFERRED} {kind}", f"{DISPREFERRED} {kind}") for kind in ("prompt", NULL)]
    return pairs


def cosine(left: Tensor, right: Tensor) -> float:
    """Mean over pictures [pictures, ...] of the cosine of two predictions."""
    return torch.nn.functional.cosine_similarity(left.flatten(1), right.flatten(1)).mean().item()


def way(base: Any, member: Any) -> dict[str, Any]:
    """How far a denoiser's weights are from the base's: the share of their norm, and of the squared way by part."""
    before, parts, norm = dict(base.named_parameters()), defaultdict(float), 0.0
    for name, weight in member.named_parameters():
        parts[part_of(name)] += (weight - before[name]).double().square().sum().item()
        norm += before[name].double().square().sum().item()
    total = sum(parts.values())
    shares = {part: round(value / total, 4) if total else 0.0 for part, value in sorted(parts.items())}
    return {"relative": round((total / norm) ** 0.5, 5), "parts": shares}


def part_of(name: str) -> str:
    """Cross-attention hears the prompt, self-attention sees the other cells; the rest is convolutions, and what tells
    them the noise level."""
    if ".attn2." in name:
        return "cross-attention"
    if ".attn1." in name:
        return "self-attention"
    if ".ff." in name or "proj_in" in name or "proj_out" in name or (".norm" in name and "transformer" in name):
        return "rest of the transformers"
    return "time" if "time_emb" in name else "convolutions"
