"""The probe of the proxy prompt (:mod:`chats.probe`) on a dispreferred model, at noise levels spread over those of
training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from chats.guidance import proxy_prompt
from chats.probe import proxy_agreement, proxy_verdict

from ..families import Denoiser, Family, Prompt

# Of the training distribution of timesteps: their shares below, from little noise to much.
PROBED_SHARES = (0.1, 0.3, 0.5, 0.7, 0.9)
# How many a run's end and an evaluation probe with.
PROBED_PROMPTS = 4


@dataclass(frozen=True)
class ProbeResult:
    """Means over prompts at each noise level of one α. ``noise_levels`` are the sampler's σ, rising."""

    alpha: float
    noise_levels: list[float]
    cosine: list[float]
    relative_error: list[float]

    @property
    def means(self) -> dict[str, float]:
        """`cosine` and `relative_error`, over the noise levels."""
        return {"cosine": _mean(self.cosine), "relative_error": _mean(self.relative_error)}

    @property
    def verdict(self) -> str:
        """On the means."""
        return proxy_verdict(**self.means)


@torch.no_grad()
def probe_proxy(
    family: Family, dispreferred: Denoiser, latents: Tensor, noise: Tensor, prompts: Prompt, null: Prompt, alpha: float
) -> ProbeResult:
    """How well the proxy form stands for the exact one in a dispreferred model, of a family that has both.

    Args:
        latents, noise: z₀ and ε, [prompts, channels, height, width], on the denoiser's device.
        prompts: embeddings, a batch of the same length.
        null: the null prompt, a batch of 1.
        alpha: not 0.
    """
    proxy = {name: proxy_prompt(prompts[name], null[name], alpha) for name in prompts}
    result = ProbeResult(alpha, [], [], [])
    for share in PROBED_SHARES:
        timesteps = family.sample_timesteps(torch.full((len(latents),), share), latents.shape[-2:])
        timesteps = timesteps.to(latents.device)
        z = family.add_noise(latents, noise, timesteps).to(family.dtype)
        given, unprompted, proxied = (
            family.predict(dispreferred, z, timesteps, each) for each in (prompts, null, proxy)
        )
        agreement = proxy_agreement(given, unprompted, proxied, alpha)
        result.noise_levels.append(family.schedule.noise_level(timesteps[0].cpu()).item())
        result.cosine.append(agreement.cosine.mean().item())
        result.relative_error.append(agreement.relative_error.mean().item())
    return result


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
