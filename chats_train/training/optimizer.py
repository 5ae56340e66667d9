"""Optimizers, their learning rate, and updating bf16 weights with stochastic rounding."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from ..settings.config import RunConfig
from ..sharding.tensors import own
from ..support.errors import UserError


def learning_rate(config: RunConfig, step: int, pairs_per_step: int) -> float:
    """The learning rate of an optimizer step, counted from 0: linear warm-up, then constant, linear or cosine to
    zero."""
    rate = config.learning_rate * (pairs_per_step if config.scale_lr else 1)
    warmup = config.lr_warmup_steps
    if step < warmup:
        return rate * (step + 1) / warmup
    progress = min(1.0, (step - warmup) / max(1, config.max_train_steps - warmup))
    if config.lr_scheduler == "linear":
        return rate * (1 - progress)
    if config.lr_scheduler == "cosine":
        return rate * (1 + math.cos(math.pi * progress)) / 2
    return rate


def make_optimizer(config: RunConfig, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer | RoundingOptimizer:
    """The configured optimizer; over bf16 weights one that keeps what a bf16 update would lose, see
    :class:`RoundingOptimizer`."""
    parameters = list(parameters)
    if parameters[0].dtype == torch.bfloat16:
        return RoundingOptimizer(config, parameters)
    return _torch_optimizer(config, parameters)


def _torch_optimizer(config: RunConfig, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    rate, decay = config.learning_rate, config.weight_decay
    betas, epsilon = (config.adam_beta1, config.adam_beta2), config.adam_epsilon
    if config.optimizer == "adafactor":
        return torch.optim.Adafactor(parameters, lr=rate, weight_decay=decay)
    if config.optimizer == "adamw":
        return _adamw(parameters, lr=rate, betas=betas, eps=epsilon, weight_decay=decay)
    try:
        import bitsandbytes
    except ImportError as error:
        raise UserError(
            "`optimizer` is adamw8bit, which needs bitsandbytes; `pip install bitsandbytes`, or set adamw"
        ) from error
    return bitsandbytes.optim.AdamW8bit(parameters, lr=rate, betas=betas, eps=epsilon, weight_decay=decay)


def _adamw(parameters: list[nn.Parameter], **settings: Any) -> torch.optim.AdamW:
    """AdamW as one kernel, where torch has it for the parameters' device and dtype; a state of either form fits the
    other."""
    try:
        return torch.optim.AdamW(parameters, fused=True, **settings)
    except RuntimeError:  # what torch raises where there is none
        return torch.optim.AdamW(parameters, **settings)


class RoundingOptimizer:
    """Steps bf16 weights in fp32, one tensor at a time, and rounds them back at random.

    bf16 has 8 bits of mantissa: at usual rates nearly every update is smaller than half a step of it and rounds to
    nothing. Rounded up with the probability of its remainder, an update arrives in the mean. Nothing is kept in fp32
    but the optimizer's own state.

    The rounding is seeded by (seed, step), so that a resumed run rounds alike.
    """

    def __init__(self, config: RunConfig, parameters: list[nn.Parameter]):
        self.seed = config.seed
        self.parameters = parameters
        self.masters = [nn.Parameter(torch.empty(0, device=parameter.device)) for parameter in parameters]
        self.inner = [_torch_optimizer(config, [master]) for master in self.masters]
        self.steps = 0

    @property
    def param_groups(self) -> list[dict]:
        return [group for optimizer in self.inner for group in optimizer.param_groups]

    @torch.no_grad()
    def step(self) -> None:
        generator = torch.Generator(self.parameters[0].device).manual_seed(self.seed * 1_000_003 + self.steps)
        for parameter, master, optimizer in zip(self.parameters, self.masters, self.inner, strict=True):
            if parameter.grad is None:
                continue
            master.data, master.grad = parameter.data.float(), parameter.grad.float()
            optimizer.step()
            parameter.copy_(stochastic_round(master.data, generator))
            master.data, master.grad = torch.empty(0, device=parameter.device), None
        self.steps += 1

    def zero_grad(self) -> None:
        for parameter in self.parameters:
            parameter.grad = None

    def state_dict(self) -> dict:
        """As torch's, one parameter after the other."""
        states = [optimizer.state_dict()["state"].get(0, {}) for optimizer in self.inner]
        return {
            "state": {index: state for index, state in enumerate(states) if state},
            "param_groups": [],
            "steps": self.steps,
        }

    def load_state_dict(self, state_dict: dict) -> None:
        for index, optimizer in enumerate(self.inner):
            if index in state_dict["state"]:
                # torch matches a state to its parameter's dtype and device, not to its shape, which is empty between
                # steps.
                groups = optimizer.state_dict()["param_groups"]
                optimizer.load_state_dict({"state": {0: state_dict["state"][index]}, "param_groups": groups})
        self.steps = state_dict["steps"]


def stochastic_round(values: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """fp32 values in bf16, each rounded up with the probability of what lies below bf16's last bit; right in the mean.

    A bf16 is the upper half of an fp32, so a random number is added to the lower half, which is then cut off.
    """
    bits = values.contiguous().view(torch.int32)
    noise = torch.randint(0, 1 << 16, bits.shape, dtype=torch.int32, device=bits.device, generator=generator)
    rounded = ((bits + noise) & -(1 << 16)).view(torch.float32)
    return torch.where(values.isfinite(), rounded, values).to(torch.bfloat16)


class Averages:
    """Exponential moving averages of the weights, in fp32; the decay warms up as (1 + n) / (10 + n)."""

    def __init__(self, decay: float, named_parameters: dict[str, nn.Parameter]):
        self.decay = decay
        self.values = {name: parameter.detach().float().clone() for name, parameter in named_parameters.items()}

    @torch.no_grad()
    def update(self, named_parameters: dict[str, nn.Parameter], step: int) -> None:
        """After optimizer step ``step``, counted from 0."""
        decay = min(self.decay, (1 + step) / (10 + step))
        for name, parameter in named_parameters.items():
            own(self.values[name]).lerp_(own(parameter).float(), 1 - decay)
