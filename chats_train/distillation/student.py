"""The student, and its start from the preferred model: equal to it, or as near as the rank of its LoRA allows."""

from __future__ import annotations

from collections.abc import Collection, Iterator

import torch
from torch import nn

from chats.lowrank import LowRank
from chats.lowrank.truncation import factorize, in_rank_of, weight_difference

from ..families import Family
from ..runs.adapters import LoRAMembers, adapter_weights
from ..runs.members import PREFERRED, Members
from ..settings.config import RunConfig

STUDENT = "student"
DOWN, UP = ".lora_A.weight", ".lora_B.weight"


def make_student(config: RunConfig, family: Family, teacher: Members, of_pair: str) -> Members:
    """A student that is equal to the base, on the teacher's device: beside the teacher's adapters on one denoiser, as
    one more whole model, or as an adapter on a base of its own.

    Args:
        config: the student's.
        teacher: frozen from now on.
        of_pair: the training method of the pair.
    """
    if config.training_method == of_pair:
        teacher.succeed(STUDENT, config)
        return teacher
    for module in teacher.modules:
        module.requires_grad_(False)
    return LoRAMembers(config, family, (STUDENT,), family.device)


@torch.no_grad()
def start_from_preferred(student: Members, teacher: Members, method: str, of_pair: str, rank: int) -> float:
    """Puts the preferred model's weights into the student.

    Args:
        method, of_pair: the training methods of student and pair.
        rank: of a student that is a LoRA.

    Returns:
        how much of what the preferred model differs from the base by the student starts with: a share of its energy,
        the sum of squares.
    """
    own, preferred = _weights(student, STUDENT), _weights(teacher, PREFERRED)
    if method == "full":
        for name, parameter in preferred.items():
            own[name].copy_(parameter)
        return 1.0
    modules = {name.removesuffix(DOWN) for name in own if name.endswith(DOWN)}
    if of_pair == "lora":
        differences = _of_adapters(preferred)
    else:
        base = {name.replace(".base_layer.", "."): value for name, value in student.modules[0].named_parameters()}
        differences = _of_weights(base, preferred, modules, rank)
    kept = total = 0.0
    for module, difference, energy in differences:
        total += energy
        if difference is not None and module in modules:
            down, up = own[module + DOWN], own[module + UP]
            begun = in_rank_of(difference, down.cpu())
            down.copy_(begun.down)
            up.copy_(begun.up.reshape(up.shape))
            kept += _energy(begun)
    return kept / total if total else 1.0


def _weights(members: Members, name: str) -> dict[str, nn.Parameter]:
    """What a member's parameters are called in a file."""
    return adapter_weights({f"{name}.{key}": value for key, value in members.parameters(name).items()}, name)


# By module: the preferred model's difference from the base where it has factors, and the energy of all of it.
Differences = Iterator[tuple[str, LowRank | None, float]]


def _of_adapters(weights: dict[str, nn.Parameter]) -> Differences:
    for name in weights:
        if name.endswith(DOWN):
            module = name.removesuffix(DOWN)
            difference = LowRank(weights[name].float().cpu(), weights[module + UP].float().cpu().flatten(1))
            yield module, difference, _energy(difference)


def _of_weights(
    base: dict[str, nn.Parameter], weights: dict[str, nn.Parameter], modules: Collection[str], rank: int
) -> Differences:
    for name, weight in weights.items():
        difference = weight_difference(base[name].cpu(), weight.cpu())
        module = name.removesuffix(".weight")
        factors = factorize(difference, rank) if module in modules and difference.ndim > 1 else None
        yield module, factors, torch.linalg.vector_norm(difference).square().item()


def _energy(difference: LowRank) -> float:
    """‖up · down‖², without the product."""
    up, down = difference.up.double(), difference.down.double().flatten(1)
    return ((up.T @ up) * (down @ down.T)).sum().item()
