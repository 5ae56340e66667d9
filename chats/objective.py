"""The training objective: Eq. 13 and 14 of the paper (arXiv 2502.12579), and the baselines it is compared with.

Everything here is a pure function of tensors. An *error* is d_m of Eq. 13, the squared error of model m on one image,
averaged over the elements of that sample: [batch]. A loss takes the errors of a batch of pairs and returns one loss per
pair, [batch], so that the caller divides by the size of the whole batch, over accumulation steps and processes alike,
and metrics that are detached, [batch] each.

The equations are the same for epsilon, v-prediction and flow: only the target y of :func:`squared_error` differs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional

DEFAULT_BETA = 1000.0


def squared_error(prediction: Tensor, target: Tensor) -> Tensor:
    """d = ‖y − f(z_t, t, c)‖² (Eq. 13, 14): [batch, ...] → [batch], the mean over the elements of each sample, in fp32
    or better.

    Departure from Eq. 13, which knows epsilon only: a v-prediction model is held to v, the quantity it predicts. In
    terms of ε that is ‖ε − ε̂‖² / ᾱ_t.
    """
    dtype = torch.promote_types(prediction.dtype, torch.float32)
    return (prediction.to(dtype) - target.to(dtype)).square().flatten(1).mean(1)


@dataclass(frozen=True)
class PairErrors:
    """Errors on a batch of pairs, [batch] each; None where an objective does not look.

    ``chosen`` and ``rejected`` are those of the trained models on z⁺ and z⁻. With two models these are d_θ⁺(z⁺) and
    d_θ⁻(z⁻), each model on its own images only; with one model both are its own. ``*_reference`` are d_ref(z⁺) and
    d_ref(z⁻), without gradient.
    """

    chosen: Tensor
    rejected: Tensor | None = None
    chosen_reference: Tensor | None = None
    rejected_reference: Tensor | None = None


Metrics = dict[str, Tensor]


def chats_loss(errors: PairErrors, beta: float = DEFAULT_BETA) -> tuple[Tensor, Metrics]:
    """CHATS (Eq. 13 for diffusion, Eq. 14 for flow): L = −log σ(z), z = −T (Δ⁺ + Δ⁻).

    The two rewards are added: each model is to fit its own images better than the reference does.

    Args:
        errors: all four errors.
        beta: T.

    Returns:
        the losses, [batch], and the metrics of :func:`preference_metrics`.
    """
    delta_chosen, delta_rejected = _deltas(errors)
    z = -beta * (delta_chosen + delta_rejected)
    return -functional.logsigmoid(z), preference_metrics(errors, z)


def diffusion_dpo_loss(errors: PairErrors, beta: float = DEFAULT_BETA) -> tuple[Tensor, Metrics]:
    """Diffusion-DPO (Wallace et al. 2023, arXiv 2311.12908, Eq. 14), one model: L = −log σ(z), z = −T (Δ⁺ − Δ⁻).

    ``beta`` is the whole factor; the ``beta_dpo`` of that paper's code is halved there, so its 5000 is 2500 here.
    """
    delta_chosen, delta_rejected = _deltas(errors)
    z = -beta * (delta_chosen - delta_rejected)
    return -functional.logsigmoid(z), preference_metrics(errors, z)


def supervised_chosen_loss(errors: PairErrors, beta: float = DEFAULT_BETA) -> tuple[Tensor, Metrics]:
    """Table 4, "single model (preferred data)": L = d_θ(z⁺). No ``beta`` enters."""
    return errors.chosen, {"error_chosen": errors.chosen.detach()}


def supervised_all_loss(errors: PairErrors, beta: float = DEFAULT_BETA) -> tuple[Tensor, Metrics]:
    """Table 4, "single model (full data)": each pair is two plain samples, L = (d_θ(z⁺) + d_θ(z⁻)) / 2. No ``beta``
    enters."""
    return (errors.chosen + _rejected(errors)) / 2, error_metrics(errors)


def two_models_without_reference_loss(errors: PairErrors, beta: float = DEFAULT_BETA) -> tuple[Tensor, Metrics]:
    """Table 4, "two models (w/o ref)": each model is trained plainly on its own images, L = d_θ⁺(z⁺) + d_θ⁻(z⁻). No
    ``beta`` enters.

    The paper gives no formula for this row; with nothing to compare to, this is the plain loss of each member.
    """
    return errors.chosen + _rejected(errors), error_metrics(errors)


@dataclass(frozen=True)
class Objective:
    """A loss, what a loop must bring to it, and what it reports.

    ``models``: 2 when each image has a model of its own, 1 when one model sees both. ``needs_rejected``,
    ``needs_reference``: which errors the loss reads beyond ``chosen``. ``metrics``: the names of what the loss returns
    beside the losses, known before the first batch, so that a process that has none in a step sums the same as the
    others.
    """

    loss: Callable[[PairErrors, float], tuple[Tensor, Metrics]]
    models: int
    needs_rejected: bool
    needs_reference: bool
    metrics: tuple[str, ...]


ERROR_METRICS = ("error_chosen", "error_rejected")
PREFERENCE_METRICS = (*ERROR_METRICS, "delta_chosen", "delta_rejected", "z", "gate", "implicit_accuracy")

OBJECTIVES: dict[str, Objective] = {
    "chats": Objective(chats_loss, models=2, needs_rejected=True, needs_reference=True, metrics=PREFERENCE_METRICS),
    "diffusion_dpo": Objective(
        diffusion_dpo_loss, models=1, needs_rejected=True, needs_reference=True, metrics=PREFERENCE_METRICS
    ),
    "supervised_chosen": Objective(
        supervised_chosen_loss, models=1, needs_rejected=False, needs_reference=False, metrics=("error_chosen",)
    ),
    "supervised_all": Objective(
        supervised_all_loss, models=1, needs_rejected=True, needs_reference=False, metrics=ERROR_METRICS
    ),
    "two_models_without_reference": Objective(
        two_models_without_reference_loss, models=2, needs_rejected=True, needs_reference=False, metrics=ERROR_METRICS
    ),
}


def gradient_weights(
    objective: Objective, errors: PairErrors, beta: float = DEFAULT_BETA
) -> tuple[Tensor, Tensor | None]:
    """∂L/∂d of the chosen and of the rejected error, [batch] each: what makes a loop with one graph alive at a time
    exact.

    The models meet in the loss only through their errors, so ∇L = w⁺ ∇d_θ⁺(z⁺) + w⁻ ∇d_θ⁻(z⁻): with the weights known
    from passes without gradient, Σ w⁺ d_θ⁺ is run and backpropagated first and Σ w⁻ d_θ⁻ after it. For CHATS both
    weights are T σ(−z). They come from autograd on the loss itself, so that they cannot drift from it. The rejected
    weight is None when ``errors.rejected`` is.
    """
    chosen = errors.chosen.detach().requires_grad_()
    rejected = None if errors.rejected is None else errors.rejected.detach().requires_grad_()
    leaves = [chosen] if rejected is None else [chosen, rejected]
    with torch.enable_grad():
        losses, _ = objective.loss(replace(errors, chosen=chosen, rejected=rejected), beta)
        weights = torch.autograd.grad(losses.sum(), leaves, materialize_grads=True)
    return weights[0], None if rejected is None else weights[1]


def preference_metrics(errors: PairErrors, z: Tensor) -> Metrics:
    """What is logged of a comparison with the reference (``PREFERENCE_METRICS``), detached, [batch] each: the errors,
    Δ⁺ and Δ⁻, ``z``, ``gate`` = σ(−z), and ``implicit_accuracy``.

    The gate is the share of the gradient that a pair still gets. The implicit accuracy is 1 where σ(z) > ½, that is
    where the models beat the reference on this pair, and ½ where they equal it.
    """
    z = z.detach()
    delta_chosen, delta_rejected = _deltas(errors)
    return {
        **error_metrics(errors),
        "delta_chosen": delta_chosen.detach(),
        "delta_rejected": delta_rejected.detach(),
        "z": z,
        "gate": torch.sigmoid(-z),
        "implicit_accuracy": (torch.sign(z) + 1) / 2,
    }


def error_metrics(errors: PairErrors) -> Metrics:
    """The errors of both sides (``ERROR_METRICS``), detached, [batch] each."""
    return {"error_chosen": errors.chosen.detach(), "error_rejected": _rejected(errors).detach()}


def _deltas(errors: PairErrors) -> tuple[Tensor, Tensor]:
    """Δ⁺ = d_θ⁺(z⁺) − d_ref(z⁺) and Δ⁻ = d_θ⁻(z⁻) − d_ref(z⁻) (Eq. 13), [batch] each.

    The reference's errors are cut from any graph: the reference is frozen.
    """
    if errors.chosen_reference is None or errors.rejected_reference is None:
        raise ValueError(
            "this objective compares with the reference model: `chosen_reference` and `rejected_reference` are needed"
        )
    delta_chosen = errors.chosen - errors.chosen_reference.detach()
    return delta_chosen, _rejected(errors) - errors.rejected_reference.detach()


def _rejected(errors: PairErrors) -> Tensor:
    if errors.rejected is None:
        raise ValueError("this objective trains on the rejected images too: `rejected` is needed")
    return errors.rejected
