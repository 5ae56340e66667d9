"""Optimizers, their learning rate, and stepping tensor by tensor: bf16 weights, and Adafactor in shards."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from ..settings.config import RunConfig
from ..sharding.tensors import first_index, in_shards, own, own_rows, whole
from ..support.errors import UserError

# Numbers: a hash of 64 bits each is made of so many at a time.
ROUNDED_AT_ONCE = 1 << 22


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


def make_optimizer(
    config: RunConfig, parameters: Iterable[nn.Parameter]
) -> torch.optim.Optimizer | TensorwiseOptimizer:
    """The configured optimizer; over bf16 weights, and for Adafactor in shards, a :class:`TensorwiseOptimizer`."""
    parameters = list(parameters)
    in_shards = isinstance(parameters[0], DTensor)
    if parameters[0].dtype == torch.bfloat16 or (in_shards and config.optimizer == "adafactor"):
        return TensorwiseOptimizer(config, parameters)
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


class TensorwiseOptimizer:
    """Steps weights in fp32, one tensor at a time. What bf16 weights come to is rounded back at random.

    bf16 has 8 bits of mantissa: at usual rates nearly every update is smaller than half a step of it and rounds to
    nothing. Rounded up with the probability of its remainder, an update arrives in the mean. Nothing is kept in fp32
    but the optimizer's own state.

    Of weights in shards each process steps its part; under Adafactor all of a weight, since its state is of whole rows
    and columns. What an element is rounded by follows from the seed, the step, the weight and the element's place in
    it, so that a resumed run rounds alike, and so do other shards.
    """

    def __init__(self, config: RunConfig, parameters: list[nn.Parameter]):
        self.seed = config.seed
        self.parameters = parameters
        self.masters = [nn.Parameter(torch.empty(0, device=parameter.device)) for parameter in parameters]
        self.inner = [_torch_optimizer(config, [master]) for master in self.masters]
        self.steps = 0
        self._sees_all = config.optimizer == "adafactor"

    @property
    def param_groups(self) -> list[dict]:
        return [group for optimizer in self.inner for group in optimizer.param_groups]

    @torch.no_grad()
    def step(self) -> None:
        seen = whole if self._sees_all else own
        together = zip(self.parameters, self.masters, self.inner, strict=True)
        for number, (parameter, master, optimizer) in enumerate(together):
            if parameter.grad is None:
                continue
            master.data, master.grad = seen(parameter).float(), seen(parameter.grad).float()
            optimizer.step()
            part = own_rows(master.data, parameter) if self._sees_all else master.data
            if parameter.dtype == torch.bfloat16:
                part = stochastic_round(part, f"{self.seed} {self.steps} {number}", first_index(parameter))
            own(parameter).copy_(part)
            master.data, master.grad = torch.empty(0, device=parameter.device), None
        self.steps += 1

    def zero_grad(self) -> None:
        for parameter in self.parameters:
            parameter.grad = None

    def state_dict(self) -> dict:
        """As torch's, one parameter after the other."""
        states = [
            self._kept(parameter, optimizer.state_dict()["state"].get(0, {}))
            for parameter, optimizer in zip(self.parameters, self.inner, strict=True)
        ]
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
                state = {
                    name: own(value) if isinstance(value, Tensor) else value
                    for name, value in state_dict["state"][index].items()
                }
                optimizer.load_state_dict({"state": {0: state}, "param_groups": groups})
        self.steps = state_dict["steps"]

    def _kept(self, parameter: nn.Parameter, state: dict) -> dict:
        """A parameter's state, what is a part of its whole as such."""
        if not isinstance(parameter, DTensor) or self._sees_all:
            return state
        return {name: in_shards(value, parameter) if value.ndim else value for name, value in state.items()}


def stochastic_round(values: Tensor, key: str, first: int = 0) -> Tensor:
    """fp32 values in bf16, each rounded up with the probability of what lies below bf16's last bit; right in the mean.

    A bf16 is the upper half of an fp32, so a random number is added to the lower half, which is then cut off.

    Args:
        key: the same rounds alike.
        first: the place of the first value in the tensor that these are a part of.
    """
    bits = values.contiguous().view(torch.int32)
    parts = bits.flatten().split(ROUNDED_AT_ONCE)
    noise = [_hashed(key, first + ROUNDED_AT_ONCE * index, part) for index, part in enumerate(parts)]
    rounded = ((bits + torch.cat(noise).view(bits.shape)) & -(1 << 16)).view(torch.float32)
    return torch.where(values.isfinite(), rounded, values).to(torch.bfloat16)


def _hashed(key: str, first: int, like: Tensor) -> Tensor:
    """16 random bits for each place from ``first`` on, as int32: splitmix64 (Steele, Lea and Flood, 2014), whose
    shifts are without a sign."""
    start = int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big", signed=True)
    x = torch.arange(first, first + len(like), device=like.device).mul_(-0x61C8864680B583EB).add_(start)
    for shift, factor in ((30, -0x40A7B892E31B1A47), (27, -0x6B2FB644ECCEEE15)):
        x ^= (x >> shift) & ((1 << (64 - shift)) - 1)
        x *= factor
    return ((x ^ (x >> 31)) & 0xFFFF).to(torch.int32)


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
