"""LoRAs on one set of weights: hooks on its linear layers, and a switch that says whose is in force.

A hook adds to a layer's output and leaves its weight alone, so it does not matter how that is stored: quantised,
patched by somebody else's LoRA, or brought from RAM for each call.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional

from ...chats.pair import Member

MEMBERS: tuple[Member, Member] = ("preferred", "dispreferred")
# What a pair is distilled into.
STUDENT = "student"
# How ComfyUI calls the network within a MODEL; its LoRAs' keys begin with it, for every family.
PREFIX = "diffusion_model."
ATTENTION, ALL_LINEAR = "attention", "all linear"
# What names of attention's layers have in them. Flux's single blocks hold attention and the rest in one matrix.
ATTENTION_WORDS = ("attn", "attention", "single_blocks.", "single_transformer_blocks.")


class LowRank(nn.Module):
    """What a LoRA adds to one linear layer, at scale 1: up · down · x, in fp32; up begins at zero.

    Args:
        generator: of down's first values, uniform within ±1/√inputs, as PEFT's are.
    """

    def __init__(self, inputs: int, outputs: int, rank: int, generator: torch.Generator):
        super().__init__()
        first = torch.rand(rank, inputs, generator=generator) * 2 - 1
        self.down = nn.Parameter(first / inputs**0.5)
        self.up = nn.Parameter(torch.zeros(outputs, rank))

    def forward(self, x: Tensor) -> Tensor:
        """[…, inputs] → […, outputs], in the dtype of ``x``."""
        return functional.linear(functional.linear(x, self.down.to(x.dtype)), self.up.to(x.dtype))


class Adapters:
    """The LoRAs of a pair's members, or of a student, on the layers of a network.

    Attributes:
        active: the one in force, by name; None is the reference, the network as it is.

    Args:
        network: of the MODEL.
        layers: `attention` or `all linear`.
        seed: of the first values.
        names: of the LoRAs.

    Raises:
        ValueError: where the network has no such layer.
    """

    def __init__(self, network: nn.Module, rank: int, layers: str, seed: int, names: Sequence[str] = MEMBERS):
        self.active: str | None = None
        self.names = tuple(names)
        self._modules = {name: module for name, module in network.named_modules() if _is_chosen(name, module, layers)}
        if not self._modules:
            raise ValueError(
                f"`layers` is {layers}, and the model has no such layer that is linear; set it to {ALL_LINEAR}, or "
                "connect another model"
            )
        generator = torch.Generator().manual_seed(seed)
        self.loras = {
            whose: {
                name: LowRank(module.in_features, module.out_features, rank, generator)
                for name, module in self._modules.items()
            }
            for whose in self.names
        }
        self.rank = rank

    def to(self, device: torch.device) -> None:
        for loras in self.loras.values():
            for lora in loras.values():
                lora.to(device)

    def parameters(self) -> dict[str, nn.Parameter]:
        """All that trains, as `<whose>.<layer>.<up or down>`, always in the same order."""
        return {
            f"{whose}.{name}.{key}": parameter
            for whose, loras in self.loras.items()
            for name, lora in loras.items()
            for key, parameter in lora.named_parameters()
        }

    @contextmanager
    def installed(self) -> Iterator[None]:
        """With the hooks in place, none in force; afterwards the network has nothing of them."""
        handles = [module.register_forward_hook(self._hook(name)) for name, module in self._modules.items()]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()
            self.active = None

    def _hook(self, name: str) -> Callable:
        def add(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor | None:
            if self.active is None:
                return None
            return output + self.loras[self.active][name](inputs[0]).to(output.dtype)

        return add


def trained_bytes(network: nn.Module, rank: int, layers: str, loras: int = len(MEMBERS)) -> int:
    """What so many LoRAs take while they are trained: weight, gradient and AdamW's two moments, of four bytes each."""
    chosen = (module for name, module in network.named_modules() if _is_chosen(name, module, layers))
    return loras * 4 * 4 * rank * sum(module.in_features + module.out_features for module in chosen)


def lora_file(parameters: dict[str, Tensor], whose: str, dtype: torch.dtype = torch.float16) -> dict[str, Tensor]:
    """One LoRA's weights, out of those of :meth:`Adapters.parameters`, by the keys that ComfyUI loads for every family;
    on the CPU."""
    tensors: dict[str, Tensor] = {}
    for key, value in parameters.items():
        owner, _, rest = key.partition(".")
        if owner == whose:
            layer, _, side = rest.rpartition(".")
            tensors[f"{PREFIX}{layer}.lora_{side}.weight"] = value.detach().to("cpu", dtype).contiguous()
            if side == "down":
                # ComfyUI scales by alpha / rank.
                tensors[f"{PREFIX}{layer}.alpha"] = torch.tensor(float(value.shape[0]))
    return tensors


def _is_chosen(name: str, module: nn.Module, layers: str) -> bool:
    # Not by its class: quantised layers have classes of their own.
    linear = all(hasattr(module, key) for key in ("in_features", "out_features", "weight"))
    return linear and (layers == ALL_LINEAR or any(word in name for word in ATTENTION_WORDS))
