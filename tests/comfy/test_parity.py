"""Parity with the arithmetic of the authors' pipeline: a two-model Euler loop in diffusers' terms, written from the
equations.

It calls the bare networks with (x/√(σ²+1), t, embeddings), mixes c̃ = −αc + (1+α)∅, combines ε̃ = (1+s)ε⁺ − sε⁻ (Eq.
17) and steps x ← x + (σ' − σ)·ε̃, with σ = √((1−ᾱ)/ᾱ) of the scaled-linear schedule at whole timesteps.
"""

import itertools

import mini
import torch
from conftest import ends_only
from running import guider_of, run

TIMESTEPS = [999, 800, 601, 402, 203, 4]
GUIDANCE_SCALE = 5.0
ALPHA = 0.5


def noise_levels() -> torch.Tensor:
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    alphas_cumprod = torch.cumprod(1 - betas, dim=0)
    return ((1 - alphas_cumprod) / alphas_cumprod) ** 0.5


def pipeline(preferred, dispreferred, prompt, null, noise) -> torch.Tensor:
    proxy = -ALPHA * prompt + (1 + ALPHA) * null
    sigmas = [*(noise_levels()[t].item() for t in TIMESTEPS), 0.0]
    latents = noise * (sigmas[0] ** 2 + 1) ** 0.5
    with torch.no_grad():
        for timestep, (sigma, sigma_next) in zip(TIMESTEPS, itertools.pairwise(sigmas), strict=True):
            scaled = latents / (sigma**2 + 1) ** 0.5
            t = torch.full((latents.shape[0],), timestep)
            win = preferred.model.diffusion_model(scaled, t, context=prompt.expand(latents.shape[0], -1, -1))
            lose = dispreferred.model.diffusion_model(scaled, t, context=proxy.expand(latents.shape[0], -1, -1))
            epsilon = (1 + GUIDANCE_SCALE) * win - GUIDANCE_SCALE * lose
            latents = latents + (sigma_next - sigma) * epsilon
    return latents


@ends_only
def test_the_final_latent_is_that_of_the_pipeline(pairs, nodes):
    preferred, dispreferred = pairs("sd15")
    positive, null = mini.conditioning("sd15", 3), mini.conditioning("sd15", 4)
    negative = nodes["CHATSProxyPrompt"](positive, null, ALPHA, "proxy")[0]
    noise = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(7))
    expected = pipeline(preferred, dispreferred, positive[0][0], null[0][0], noise)

    paired = nodes["CHATSApply"](preferred, dispreferred, 0.0, 1.0)[0]
    sigmas = torch.tensor([*(noise_levels()[t].item() for t in TIMESTEPS), 0.0])
    actual = run(
        guider_of(paired, positive, negative, 1 + GUIDANCE_SCALE), mini.latent("sd15", 2), sigmas=sigmas, seed=7
    )
    assert mini.relative_error(actual, preferred.model.process_latent_out(expected)) < 1e-4
