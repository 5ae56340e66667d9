"""The gradient of one micro-batch of pairs, exact with one graph alive at a time.

The members meet in the loss only through their errors, so its gradient is w⁺ ∇d_θ⁺(z⁺) + w⁻ ∇d_θ⁻(z⁻) with weights that
follow from the errors' values (``chats.objective.gradient_weights``). Both orders below are one code path: with
``one_graph`` the rejected error is first computed without a graph, and again with one once the chosen side's is gone.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor

from chats.draws import Draw
from chats.objective import Metrics, Objective, PairErrors, gradient_weights, squared_error

from ..encodings.cache import EncodedPair
from ..families import Denoiser, Family, Prompt
from ..runs.members import DISPREFERRED, PREFERRED, Members

AUTOCAST_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Side:
    """What the models are asked on one side of a batch of pairs: noisy latents, target, prompt and sizes, each [batch,
    ...]."""

    noisy: Tensor
    target: Tensor
    timesteps: Tensor
    prompt: Prompt
    sizes: Tensor


@dataclass(frozen=True)
class Batch:
    """A micro-batch of pairs of one size, noised: both sides share timestep and noise."""

    chosen: Side
    rejected: Side

    @property
    def size(self) -> int:
        return self.chosen.noisy.shape[0]


class Gradients:
    """Losses and gradients of batches under one objective.

    Args:
        members: the models.
        one_graph: keep one member's activations at a time, for one more forward pass (``memory: low``, and members that
            cannot interleave).
        mixed_precision: `no`, `bf16` or `fp16`, of the forward passes.
    """

    def __init__(
        self,
        family: Family,
        members: Members,
        objective: Objective,
        beta: float,
        device: torch.device,
        *,
        one_graph: bool = False,
        mixed_precision: str = "no",
    ):
        self.family, self.members, self.objective, self.beta, self.device = family, members, objective, beta, device
        self.one_graph = one_graph or not members.interleaves
        self.autocast_dtype = AUTOCAST_DTYPES.get(mixed_precision)
        self.rejected_member = DISPREFERRED if objective.models == 2 else PREFERRED

    def measure(self, batch: Batch) -> tuple[Tensor, Metrics]:
        """Losses [batch] and metrics, [batch] each, without gradients."""
        with torch.no_grad():
            errors = PairErrors(
                chosen=self._error(PREFERRED, batch.chosen),
                rejected=self._error(self.rejected_member, batch.rejected) if self.objective.needs_rejected else None,
                **self._reference_errors(batch),
            )
        return self.objective.loss(errors, self.beta)

    def backward(self, batch: Batch, scale: float) -> tuple[Tensor, Metrics]:
        """Adds ``scale`` × the gradient of the batch's summed loss to the members' gradients.

        Returns:
            losses [batch], detached, and metrics, [batch] each.
        """
        references = self._reference_errors(batch)
        rejected = None
        if self.objective.needs_rejected and self.one_graph:
            with torch.no_grad():
                rejected = self._error(self.rejected_member, batch.rejected)
        chosen = self._error(PREFERRED, batch.chosen)
        if self.objective.needs_rejected and not self.one_graph:
            rejected = self._error(self.rejected_member, batch.rejected)
        errors = PairErrors(chosen.detach(), None if rejected is None else rejected.detach(), **references)
        chosen_weights, rejected_weights = gradient_weights(self.objective, errors, self.beta)
        (chosen_weights * chosen).sum().mul(scale).backward()
        if rejected is not None:
            del chosen
            if self.one_graph:
                rejected = self._error(self.rejected_member, batch.rejected)
            (rejected_weights * rejected).sum().mul(scale).backward()
        losses, metrics = self.objective.loss(errors, self.beta)
        return losses.detach(), metrics

    def _reference_errors(self, batch: Batch) -> dict[str, Tensor]:
        """d_ref of both sides where the objective reads them; the rejected side sees the same (replaced) prompt as the
        dispreferred."""
        if not self.objective.needs_reference:
            return {}
        with torch.no_grad():
            reference = self.members.reference()
            return {
                "chosen_reference": self._side_error(reference, batch.chosen),
                "rejected_reference": self._side_error(reference, batch.rejected),
            }

    def _error(self, member: str, side: Side) -> Tensor:
        return self._side_error(self.members.denoiser(member), side)

    def _side_error(self, denoiser: Denoiser, side: Side) -> Tensor:
        """d of Eq. 13 for one model on one side, [batch]."""
        with self._autocast():
            noisy = side.noisy.to(self.family.dtype)
            prediction = self.family.predict(denoiser, noisy, side.timesteps, side.prompt, side.sizes)
        return squared_error(prediction, side.target)

    def _autocast(self) -> AbstractContextManager:
        return nullcontext() if self.autocast_dtype is None else torch.autocast(self.device.type, self.autocast_dtype)


def make_batch(
    family: Family,
    pairs: Sequence[EncodedPair],
    draws: Sequence[Draw],
    null: Prompt,
    null_prompt_prob: float,
    device: torch.device,
) -> Batch:
    """Pairs of one size and their draws as what the models are asked.

    The dispreferred side's prompt is the null prompt where a pair's coin says so: thrown for each pair, where the
    authors' code throws one for a whole batch, which has the same mean and more variance. Everything is mixed in fp32.
    """
    noise = torch.stack([drawn.noise for drawn in draws]).to(device)
    timesteps = family.sample_timesteps(
        torch.tensor([drawn.timestep for drawn in draws], dtype=torch.float64).float()
    ).to(device)
    prompts = {name: torch.stack([pair.prompt[name] for pair in pairs]).to(device) for name in pairs[0].prompt}
    dropped = torch.tensor([drawn.coin < null_prompt_prob for drawn in draws], device=device)
    nulled = {name: _where(dropped, null[name].to(tensor), tensor) for name, tensor in prompts.items()}

    def side(latents: list[Tensor], prompt: Prompt, sizes: list[tuple[int, ...]]) -> Side:
        clean = torch.stack(latents).to(device, torch.float32)
        noisy, target = family.add_noise(clean, noise, timesteps), family.target(clean, noise, timesteps)
        return Side(noisy, target, timesteps, prompt, torch.tensor(sizes, device=device))

    return Batch(
        side([pair.chosen for pair in pairs], prompts, [tuple(pair.chosen_sizes) for pair in pairs]),
        side([pair.rejected for pair in pairs], nulled, [tuple(pair.rejected_sizes) for pair in pairs]),
    )


def _where(condition: Tensor, yes: Tensor, no: Tensor) -> Tensor:
    """Rows of ``yes`` (a batch of 1) where the condition [batch] holds, of ``no`` elsewhere."""
    return torch.where(condition.reshape(-1, *[1] * (no.ndim - 1)), yes, no)
