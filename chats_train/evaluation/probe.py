"""The probe of the proxy prompt (:mod:`chats.probe`) on a pair of a run: noise levels, prompts, means."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from chats.guidance import proxy_prompt
from chats.probe import proxy_agreement, proxy_verdict

from ..families import Denoiser, Family, Prompt
from ..runs.members import DISPREFERRED, Members
from ..runs.trained import late
from ..sampling.sampler import initial_noise
from ..settings.config import RunConfig
from .conditions import Condition, sample_condition
from .drawing import noise_seed
from .prompts import EvaluationPrompt

# Of the training distribution of timesteps: their shares below, from little noise to much.
PROBED_SHARES = (0.1, 0.3, 0.5, 0.7, 0.9)
PROBED_PROMPTS = 4


@dataclass(frozen=True)
class ProbeResult:
    """Means over prompts at each noise level of one α. ``noise_levels`` are the sampler's σ, rising."""

    alpha: float
    noise_levels: list[float]
    cosine: list[float]
    relative_error: list[float]

    @property
    def verdict(self) -> str:
        """On the means over the noise levels."""
        return proxy_verdict(_mean(self.cosine), _mean(self.relative_error))


@torch.no_grad()
def probe_proxy(
    family: Family, dispreferred: Denoiser, latents: Tensor, noise: Tensor, prompts: Prompt, null: Prompt, alpha: float
) -> ProbeResult:
    """How well the proxy form stands for the exact one in a dispreferred model, at noise levels spread over training's.

    Args:
        latents, noise: z₀ and ε, [prompts, channels, height, width], on the denoiser's device.
        prompts: embeddings, a batch of the same length.
        null: the null prompt, a batch of 1.
        alpha: not 0.
    """
    proxy = {name: proxy_prompt(prompts[name], null[name], alpha) for name in prompts}
    result = ProbeResult(alpha, [], [], [])
    for share in PROBED_SHARES:
        timesteps = family.sample_timesteps(torch.full((len(latents),), share)).to(latents.device)
        z = family.add_noise(latents, noise, timesteps).to(family.dtype)
        predictions = [family.predict(dispreferred, z, timesteps, each) for each in (prompts, null, proxy)]
        agreement = proxy_agreement(*predictions, alpha)
        result.noise_levels.append(_noise_level(family, timesteps[0]))
        result.cosine.append(agreement.cosine.mean().item())
        result.relative_error.append(agreement.relative_error.mean().item())
    return result


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
    if not alphas:
        return []
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
    dispreferred = late(members, DISPREFERRED)
    return [
        probe_proxy(family, dispreferred, torch.cat(latents), torch.cat(noises), batch, null, alpha) for alpha in alphas
    ]


def probe_table(results: Sequence[ProbeResult]) -> list[list[str]]:
    """Rows of text: a head, and a row for each α and noise level."""
    rows = [["α", "σ", "cosine", "relative error"]]
    for result in results:
        levels = zip(result.noise_levels, result.cosine, result.relative_error, strict=True)
        rows += [
            [f"{result.alpha:g}", f"{sigma:.3g}", f"{cosine:.3f}", f"{error:.3f}"] for sigma, cosine, error in levels
        ]
    return rows


def _noise_level(family: Family, timestep: Tensor) -> float:
    """The sampler's σ at a timestep of training."""
    # A flow's timestep is its σ; its schedule's `sigma` is of the sampler's positions, which are shifted.
    return timestep.item() if family.prediction_type == "flow" else family.schedule.sigma(timestep.cpu()).item()


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
