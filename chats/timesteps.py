"""Which noise levels are trained on: from a number that is uniform from 0 to 1 to a timestep, rising, so that noise
rises with it."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def table_timesteps(uniform: Tensor, count: int) -> Tensor:
    """Of a table of ``count`` noise levels each as often, as a diffusion model is trained: indices [batch] for numbers
    in [0, 1) [batch]."""
    return (uniform * count).long().clamp(max=count - 1)


def flow_timesteps(uniform: Tensor, shift: float) -> Tensor:
    """Logit-normal with mean 0 and deviation 1 (SD3 paper, arXiv 2403.03206, Section 3.1), then shifted; as diffusers'
    trainers do. Numbers in [0, 1) [batch] to times in (0, 1) [batch], fp32; a shift of 1 is none."""
    tiny = torch.finfo(torch.float32).eps
    normal = math.sqrt(2) * torch.erfinv(2 * uniform.float().clamp(tiny, 1 - tiny) - 1)
    return shifted(torch.sigmoid(normal), shift)


def shifted(t: Tensor, shift: float) -> Tensor:
    """Time bent towards noise: t ↦ s·t / (1 + (s−1)·t), Eq. 23 of the SD3 paper."""
    return shift * t / (1 + (shift - 1) * t)
