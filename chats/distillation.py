"""A pair and its guidance as one model: what the pair predicts with its guidance, the teacher, and the loss of a
student that is to predict the same in one pass, at cfg 1.

With s and α fixed, ε̃(z_t, c) of Eq. 16 or 17 of the paper (arXiv 2502.12579) is one function of the noisy latent and
the prompt. The student learns that function, as classifier-free guidance is distilled (Meng et al. 2022, arXiv
2210.03142, Section 3.1), here for one s. What it loses: cfg and negative prompts, which are no inputs of it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from .guidance import Asked, Form, guided_prediction
from .objective import Metrics, Objective, PairErrors

# The model that the guidance leads away from: the pair's own dispreferred one, or the untouched base.
Negative = Literal["dispreferred", "base"]


@dataclass(frozen=True)
class Guidance:
    """How the teacher is sampled: all that its prediction depends on beside the models.

    ``guidance_scale`` is the paper's s. Outside of ``start_percent`` to ``end_percent`` of the noise schedule the
    preferred model predicts alone.
    """

    form: Form
    negative: Negative
    guidance_scale: float
    alpha: float
    start_percent: float = 0.0
    end_percent: float = 1.0


def taught_prediction(
    preferred: Tensor, negative: Callable[[Asked], Tensor], guidance: Guidance, guides: Tensor
) -> Tensor:
    """What the student is to predict: ε̃ where the guidance acts, ε⁺ elsewhere.

    Args:
        preferred: ε⁺(z_t, c), [batch, channels, ...].
        negative: gives the negative model's prediction for what it is asked, same shape; not called where nothing is
            guided.
        guides: whether the guidance acts at a sample's noise level, [batch].
    """
    if not guides.any():
        return preferred
    guided = guided_prediction(preferred, negative, guidance.form, guidance.guidance_scale, guidance.alpha)
    return torch.where(guides.reshape(-1, *[1] * (preferred.ndim - 1)), guided, preferred)


def distillation_loss(errors: PairErrors, beta: float) -> tuple[Tensor, Metrics]:
    """L = ‖ε̃ − f(z_t, t, c)‖², the student's error against the teacher's prediction: ``errors.chosen``, [batch], on
    what the network itself predicts (ε, v or a flow's velocity). No ``beta`` enters.

    ``errors.chosen_reference`` is ‖ε̃ − ε⁺‖², the preferred model's own error: what there is to learn. It is reported as
    ``preferred_error``, and the loss over it is the share that is not learned.
    """
    assert errors.chosen_reference is not None
    return errors.chosen, {"preferred_error": errors.chosen_reference.detach()}


DISTILLATION = Objective(
    distillation_loss, models=1, needs_rejected=False, needs_reference=True, metrics=("preferred_error",)
)
