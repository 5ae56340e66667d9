"""Noise schedules: how a family mixes, names and removes noise, in training and in sampling.

One class holds both sides, so that a model is sampled on the schedule it was trained on. Sampling speaks k-diffusion's
language, x = z₀ + σ ε for diffusion and x = (1 − σ) z₀ + σ ε for flow, and its tables are ComfyUI's to the last bit
that matters: the same seed, steps and scheduler give the same picture there.
"""

from __future__ import annotations

import copy
import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor

from chats.pair import PredictionType
from chats.timesteps import flow_timesteps, shifted, table_timesteps

TRAIN_TIMESTEPS = 1000
BETA_START, BETA_END = 0.00085, 0.012
# ComfyUI's stand-in for ᾱ = 0 at the last step of a zero-terminal-SNR schedule, whose σ would be infinite.
ZERO_SNR_ALPHA_BAR = 4.8973451890853435e-08


class Schedule(ABC):
    """A noise schedule.

    Attributes:
        prediction_type: what the network predicts.
        sigmas: ascending table of noise levels, from which samplers pick theirs.
    """

    prediction_type: PredictionType
    sigmas: Tensor

    # Training: timesteps are what `Family.predict` takes.

    @abstractmethod
    def sample_timesteps(self, uniform: Tensor) -> Tensor:
        """Timesteps [batch] for uniform numbers in [0, 1) [batch]; rising in ``uniform``, so noise rises with it."""

    @abstractmethod
    def add_noise(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """z_t for z₀, ε [batch, channels, height, width] and timesteps [batch]."""

    @abstractmethod
    def target(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """What the network is to predict for z_t, of the shape of ``latents``."""

    # Sampling.

    @abstractmethod
    def timestep(self, sigma: Tensor) -> Tensor:
        """The timestep that the network is told at a noise level; both of any shape."""

    @abstractmethod
    def sigma(self, timestep: Tensor) -> Tensor:
        """The noise level at a (possibly fractional) position of the `normal` scheduler."""

    @abstractmethod
    def noise_level(self, timesteps: Tensor) -> Tensor:
        """The noise level of timesteps of training; both of any shape, on the CPU."""

    @abstractmethod
    def percent_to_sigma(self, percent: float) -> float:
        """The noise level at a share of the schedule, 0 at its beginning; as ComfyUI has it."""

    @abstractmethod
    def scale_input(self, x: Tensor, sigma: Tensor) -> Tensor:
        """x as the network wants it."""

    @abstractmethod
    def denoised(self, prediction: Tensor, x: Tensor, sigma: Tensor) -> Tensor:
        """z₀ as the prediction implies it."""

    @abstractmethod
    def start(self, noise: Tensor, sigma: Tensor) -> Tensor:
        """x at the first noise level of a run from pure noise."""


class DiffusionSchedule(Schedule):
    """The scaled-linear schedule of Stable Diffusion (Eq. 1): z_t = √ᾱ_t z₀ + √(1−ᾱ_t) ε, β from 0.00085 to 0.012 in
    1000 steps.

    Args:
        prediction_type: `epsilon` or `v_prediction`.
        zero_terminal_snr: whether ᾱ is rescaled to end at (nearly) zero.
    """

    def __init__(self, prediction_type: PredictionType, zero_terminal_snr: bool = False):
        self.prediction_type = prediction_type
        self.zero_terminal_snr = zero_terminal_snr
        betas = torch.linspace(BETA_START**0.5, BETA_END**0.5, TRAIN_TIMESTEPS, dtype=torch.float64) ** 2
        signal = torch.cumprod(1 - betas, dim=0).sqrt()
        if zero_terminal_snr:
            # Lin et al. 2023 (arXiv 2305.08891), Algorithm 1: shift √ᾱ to end at zero, scale it to keep its beginning.
            signal = (signal - signal[-1]) * signal[0] / (signal[0] - signal[-1])
            signal[-1] = ZERO_SNR_ALPHA_BAR**0.5
        self.alphas_bar = signal**2
        self.sigmas = ((1 - self.alphas_bar) / self.alphas_bar).sqrt().float()
        self.log_sigmas = self.sigmas.log()

    def sample_timesteps(self, uniform: Tensor) -> Tensor:
        return table_timesteps(uniform, TRAIN_TIMESTEPS)

    def add_noise(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        signal, sigma = self._mix(latents, timesteps)
        return signal * latents + sigma * noise

    def target(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        if self.prediction_type == "epsilon":
            return noise
        signal, sigma = self._mix(latents, timesteps)
        return signal * noise - sigma * latents

    def _mix(self, like: Tensor, timesteps: Tensor) -> tuple[Tensor, Tensor]:
        """√ᾱ_t and √(1−ᾱ_t), [batch, 1, 1, 1]."""
        alphas_bar = self.alphas_bar[timesteps.cpu()]
        return _per_sample(alphas_bar.sqrt(), like), _per_sample((1 - alphas_bar).sqrt(), like)

    def timestep(self, sigma: Tensor) -> Tensor:
        # The nearest of the 1000, as the network never saw one between.
        return (sigma.log().cpu().reshape(1, -1) - self.log_sigmas[:, None]).abs().argmin(dim=0).reshape(sigma.shape)

    def sigma(self, timestep: Tensor) -> Tensor:
        position = timestep.float().clamp(0, TRAIN_TIMESTEPS - 1)
        low, high, share = position.floor().long(), position.ceil().long(), position.frac()
        return ((1 - share) * self.log_sigmas[low] + share * self.log_sigmas[high]).exp()

    def noise_level(self, timesteps: Tensor) -> Tensor:
        return self.sigma(timesteps)

    def percent_to_sigma(self, percent: float) -> float:
        return self.sigma(torch.tensor((1 - percent) * (TRAIN_TIMESTEPS - 1))).item()

    def scale_input(self, x: Tensor, sigma: Tensor) -> Tensor:
        return x / (sigma**2 + 1).sqrt()

    def denoised(self, prediction: Tensor, x: Tensor, sigma: Tensor) -> Tensor:
        if self.prediction_type == "epsilon":
            return x - prediction * sigma
        return x / (sigma**2 + 1) - prediction * sigma / (sigma**2 + 1).sqrt()

    def start(self, noise: Tensor, sigma: Tensor) -> Tensor:
        # At the table's end √ᾱ is small but not zero; ComfyUI then scales by √(1+σ²), which is the variance of a noised
        # latent.
        full = math.isclose(float(self.sigmas[-1]), float(sigma), rel_tol=1e-5) or sigma > self.sigmas[-1]
        return noise * (1 + sigma**2).sqrt() if full else noise * sigma


class FlowSchedule(Schedule):
    """Rectified flow (Eq. 2): z_t = (1−t) z₀ + t ε, the network predicts ε − z₀, and a timestep is t itself.

    A shift bends time towards noise: t ↦ s·t / (1 + (s−1)·t), Eq. 23 of the SD3 paper (arXiv 2403.03206).

    Args:
        shift: of the sampler, ComfyUI's for the family.
        training_shift: of the timesteps trained on; 1 is none.
        table_size: entries of ComfyUI's table, which its `simple` scheduler walks.
    """

    prediction_type: PredictionType = "flow"

    def __init__(self, shift: float, training_shift: float, table_size: int = TRAIN_TIMESTEPS):
        self.shift, self.training_shift = shift, training_shift
        self.sigmas = self.sigma(torch.arange(1, table_size + 1) / table_size)

    def trained_with(self, shift: float) -> FlowSchedule:
        """The same, trained on timesteps of another shift."""
        other = copy.copy(self)
        other.training_shift = shift
        return other

    def sample_timesteps(self, uniform: Tensor) -> Tensor:
        return flow_timesteps(uniform, self.training_shift)

    def add_noise(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        t = _per_sample(timesteps, latents)
        return (1 - t) * latents + t * noise

    def target(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        return noise - latents

    def timestep(self, sigma: Tensor) -> Tensor:
        return sigma

    def sigma(self, timestep: Tensor) -> Tensor:
        return shifted(timestep, self.shift)

    def noise_level(self, timesteps: Tensor) -> Tensor:
        # A timestep of training is its own σ; `sigma` is of the sampler's positions, which are shifted.
        return timesteps

    def percent_to_sigma(self, percent: float) -> float:
        return shifted(torch.tensor(1 - percent, dtype=torch.float64), self.shift).item()

    def scale_input(self, x: Tensor, sigma: Tensor) -> Tensor:
        return x

    def denoised(self, prediction: Tensor, x: Tensor, sigma: Tensor) -> Tensor:
        return x - prediction * sigma

    def start(self, noise: Tensor, sigma: Tensor) -> Tensor:
        return noise * sigma


def _per_sample(values: Tensor, like: Tensor) -> Tensor:
    """[batch] as [batch, 1, 1, 1] on the device and in the dtype of ``like``."""
    return values.to(like).reshape(-1, *[1] * (like.ndim - 1))
