"""Losses and gradients of micro-batches of pairs, and the micro-batches themselves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import partial

import torch
from PIL import Image
from torch import Tensor

from chats.backpropagation import all_graphs_alive, one_graph_at_a_time
from chats.draws import Draw
from chats.objective import OBJECTIVES, Metrics, Objective, PairErrors, squared_error

from ..encodings.cache import EncodedPair
from ..families import Denoiser, Family, Prompt
from ..families.prompts import batch_of, same_length
from ..runs.members import REFERENCE, Members
from ..runs.previews import preview
from ..runs.whole_members import make_members
from ..settings.config import RunConfig
from ..sharding.modules import Shards
from ..support.dtypes import forward_dtype


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
    """A micro-batch of pairs of one size, noised: both sides share timestep and noise.

    ``references``: d_ref of both sides, [batch] each, where they are known already.
    """

    chosen: Side
    rejected: Side
    references: Mapping[str, Tensor] | None = field(default=None, kw_only=True)

    @property
    def size(self) -> int:
        return self.chosen.noisy.shape[0]


# By the error's name in `PairErrors`: the member that sees the side, or the reference, and what it is asked.
Sides = Mapping[str, tuple[str, Side]]


def joined(sides: Sequence[Side]) -> Side:
    """Sides as one, its rows those of the first, then those of the second."""
    fields = ("noisy", "target", "timesteps", "sizes")
    prompt = {name: torch.cat([side.prompt[name] for side in sides]) for name in sides[0].prompt}
    return Side(prompt=prompt, **{field: torch.cat([getattr(side, field) for side in sides]) for field in fields})


class Gradients:
    """Losses and gradients of batches under one objective.

    Args:
        members: the models.
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
        mixed_precision: str = "no",
    ):
        self.family, self.members, self.objective, self.beta, self.device = family, members, objective, beta, device
        self.dtype = forward_dtype(mixed_precision)

    def measure(self, batch: Batch) -> tuple[Tensor, Metrics]:
        """Losses [batch] and metrics, [batch] each, without gradients."""
        with torch.no_grad():
            references = self._reference_errors(batch)
            return self.objective.loss(PairErrors(**self._errors(self._sides(batch)), **references), self.beta)

    def backward(self, batch: Batch, scale: float) -> tuple[Tensor, Metrics]:
        """Adds ``scale`` × the gradient of the batch's summed loss to the members' gradients.

        Returns:
            losses [batch], detached, and metrics, [batch] each.
        """
        sides, references = self._sides(batch), self._reference_errors(batch)
        if self.members.one_graph:
            later = {name: partial(self._error, *side) for name, side in sides.items()}
            errors = one_graph_at_a_time(self.objective, self.beta, later, references, scale)
        else:
            errors = all_graphs_alive(self.objective, self.beta, self._errors(sides), references, scale)
        losses, metrics = self.objective.loss(errors, self.beta)
        return losses.detach(), metrics

    def preview(self, config: RunConfig, prompts: Sequence[tuple[Prompt, Prompt]]) -> Image.Image:
        """What is drawn along the way, for prompts and the null prompt, batches of 1."""
        return preview(config, self.family, self.members, prompts, self.device)

    def _sides(self, batch: Batch) -> Sides:
        # The preferred and the dispreferred member, or one model that sees both.
        names = self.members.names
        sides = {"chosen": (names[0], batch.chosen), "rejected": (names[-1], batch.rejected)}
        return sides if self.objective.needs_rejected else {"chosen": sides["chosen"]}

    def _reference_errors(self, batch: Batch) -> Mapping[str, Tensor]:
        """d_ref of both sides where the objective reads them."""
        if not self.objective.needs_reference:
            return {}
        return self.reference_errors(batch) if batch.references is None else batch.references

    def reference_errors(self, batch: Batch) -> dict[str, Tensor]:
        """d_ref of both sides, by the reference; the rejected side sees the same (replaced) prompt as the
        dispreferred."""
        names = ("chosen_reference", "rejected_reference")
        with torch.no_grad():
            return self._errors(dict(zip(names, ((REFERENCE, batch.chosen), (REFERENCE, batch.rejected)), strict=True)))

    def _errors(self, sides: Sides) -> dict[str, Tensor]:
        """d of each side, [batch], by its name: in one pass where the members can be called as one, and memory is not
        asked to be low."""
        asked = [side for _, side in sides.values()]
        joint = None if self.members.one_graph else self.members.joint([member for member, _ in sides.values()])
        if joint is None or len(asked) == 1:
            return {name: self._error(*side) for name, side in sides.items()}
        return dict(zip(sides, self._side_error(joint, joined(asked)).chunk(len(asked)), strict=True))

    def _error(self, member: str, side: Side) -> Tensor:
        return self._side_error(self.members.denoiser(member), side)

    def _side_error(self, denoiser: Denoiser, side: Side) -> Tensor:
        """d of Eq. 13 for one model on one side, [batch]."""
        return squared_error(self._prediction(denoiser, side, side.prompt), side.target)

    def _prediction(self, denoiser: Denoiser, side: Side, prompt: Prompt) -> Tensor:
        """What a model predicts on one side for a prompt, of the batch or of 1."""
        with self._autocast():
            noisy = side.noisy.to(self.family.dtype)
            return self.family.predict(denoiser, noisy, side.timesteps, prompt, side.sizes)

    def _autocast(self) -> AbstractContextManager:
        return nullcontext() if self.dtype == torch.float32 else torch.autocast(self.device.type, self.dtype)


def run_gradients(config: RunConfig, family: Family, device: torch.device, shards: Shards | None = None) -> Gradients:
    """Those of a run's objective, over members that begin as the base, in shards where there are some."""
    objective = OBJECTIVES[config.objective]
    with_reference = objective.needs_reference or config.sample_every > 0  # previews show the base too
    members = make_members(config, family, objective.models, with_reference, device, shards)
    if config.compile:
        members.compile()
    return Gradients(family, members, objective, config.beta, device, mixed_precision=config.mixed_precision)


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
    uniform = torch.tensor([drawn.timestep for drawn in draws], dtype=torch.float64).float()
    timesteps = family.sample_timesteps(uniform, noise.shape[-2:]).to(device)
    prompts = {name: tensor.to(device) for name, tensor in batch_of([pair.prompt for pair in pairs]).items()}
    # Of one length on both sides, which may share a pass.
    prompts, null = same_length(prompts, null)
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
