"""The probe of the proxy prompt in an evaluation: on pictures of the pair's own, its file and its table."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import torch

from chats.files import write_text

from ..families import Family
from ..runs.members import DISPREFERRED, Members
from ..sampling.probe import PROBED_PROMPTS, ProbeResult, probe_proxy
from ..sampling.sampler import initial_noise
from ..settings.config import RunConfig
from .conditions import Condition, sample_condition
from .drawing import noise_seed
from .prompts import EvaluationPrompt
from .report import without_nan

PROBE_FILE = "probe.json"


def probe_pair(
    config: RunConfig,
    family: Family,
    members: Members,
    prompts: Sequence[EvaluationPrompt],
    alphas: Sequence[float],
    steps: int,
) -> list[ProbeResult]:
    """Probes a run's dispreferred model for each α but 0, on pictures that the pair itself draws in the exact form.

    Args:
        prompts: the first few are used.
        steps: of the sampler, for those pictures.
    """
    chosen = list(prompts)[:PROBED_PROMPTS]
    null, embedded = family.null_prompt(), [family.encode_prompt([prompt.text]) for prompt in chosen]
    alphas = [alpha for alpha in alphas if alpha != 0]
    exact = Condition("pair", config.guidance_scale, alphas[0], "exact")
    latents, noises = [], []
    for prompt, embedding in zip(chosen, embedded, strict=True):
        start, noise = (
            initial_noise(family, 1, config.resolution, config.resolution, noise_seed(prompt.text, seed)).to(
                family.device
            )
            for seed in (0, 1)
        )
        latents.append(sample_condition(exact, family, members, embedding, null, start, steps))
        noises.append(noise)
    batch = {name: torch.cat([embedding[name] for embedding in embedded]) for name in null}
    dispreferred = members.denoiser(DISPREFERRED)
    return [
        probe_proxy(family, dispreferred, torch.cat(latents), torch.cat(noises), batch, null, alpha) for alpha in alphas
    ]


def write_probe(folder: Path, weights: str, results: Sequence[ProbeResult]) -> None:
    """Writes probe.json.

    Args:
        folder: of the evaluation.
        weights: digest of the members' weights.
    """
    said = {"weights_sha256": weights, "alphas": [{**asdict(each), "verdict": each.verdict} for each in results]}
    write_text(folder / PROBE_FILE, json.dumps(without_nan(said), ensure_ascii=False, indent=1) + "\n")


def probe_table(results: Sequence[ProbeResult]) -> list[list[str]]:
    """Rows of text: a head, and a row for each α and noise level."""
    rows = [["α", "σ", "cosine", "relative error"]]
    for result in results:
        levels = zip(result.noise_levels, result.cosine, result.relative_error, strict=True)
        rows += [
            [f"{result.alpha:g}", f"{sigma:.3g}", f"{cosine:.3f}", f"{error:.3f}"] for sigma, cosine, error in levels
        ]
    return rows


def probe_verdicts(results: Sequence[ProbeResult]) -> list[str]:
    """A line for each α."""
    return [f"α = {result.alpha:g}: {result.verdict}" for result in results]
