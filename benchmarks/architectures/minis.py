"""Mini models of ComfyUI's own classes with seeded random weights, the prompts that they take, and LoRAs on every layer
of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import comfy.model_management
import comfy.sd
import comfy.supported_models
import torch
from comfy.model_patcher import CoreModelPatcher, ModelPatcher

Shape = tuple[int, ...]
# Of a text encoder's further outputs, by name: a value by seed and tokens.
Outputs = Mapping[str, Callable[[int, int], object]]
# Parameters that scale, by a part of their names: about 1, not about 0.
SCALES = ("norm", "scale", "ln", "gamma")


def noise(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@dataclass(frozen=True)
class Network:
    """A network that ComfyUI knows, at a size that two cores run.

    Args:
        family: its class in `comfy.supported_models`.
        config: what ComfyUI would detect of it.
        latent: the shape of what is sampled, with the batch; several where it is several streams in one.
        width: of the text encoder's embeddings.
        pooled: width of the pooled embedding; None where there is none.
        outputs: what else the text encoder gives.
        options: of each conditioning entry, the same for both prompts.
        tokens: of the prompt and of the null prompt, in two encodings that are weighed apart.
        beside: weights beside the network that its class is made with.
    """

    family: str
    config: dict
    latent: Shape | tuple[Shape, ...]
    width: int
    pooled: int | None = None
    outputs: Outputs = field(default_factory=dict)
    options: Mapping[str, object] = field(default_factory=dict)
    tokens: tuple[int, int] = (16, 11)
    beside: Mapping[str, torch.Tensor] = field(default_factory=dict)

    def module(self) -> torch.nn.Module:
        """ComfyUI's model, its weights not yet set."""
        settings = getattr(comfy.supported_models, self.family)(dict(self.config))
        settings.set_inference_dtype(torch.float32, None)
        return settings.get_model(dict(self.beside), "")

    def weights(self, seed: int) -> dict[str, torch.Tensor]:
        """Native keys, without prefix."""
        return seeded(self.module().diffusion_model, seed)

    def model(self, seed: int) -> ModelPatcher:
        model = self.module()
        model.diffusion_model.load_state_dict(seeded(model.diffusion_model, seed))
        device = comfy.model_management.get_torch_device()
        return CoreModelPatcher(model, load_device=device, offload_device=device)

    def prompt(self, seed: int, tokens: int, **options: object) -> list:
        """A conditioning of one entry."""
        pooled = None if self.pooled is None else noise(seed + 100, 1, self.pooled)
        entry = {"pooled_output": pooled, **self.options, **options}
        entry |= {name: make(seed, tokens) for name, make in self.outputs.items()}
        return [[noise(seed, 1, tokens, self.width), entry]]


def seeded(module: torch.nn.Module, seed: int) -> dict[str, torch.Tensor]:
    """Normal weights scaled by fan-in, as large in all layers; nothing is left at zero, where a branch would be off."""
    generator = torch.Generator().manual_seed(seed)
    weights = {}
    for key, value in module.state_dict().items():
        if not value.dtype.is_floating_point:
            weights[key] = value
            continue
        drawn = torch.empty(value.shape).normal_(generator=generator)
        if value.ndim <= 1:
            scales = not key.endswith("bias") and any(part in key for part in SCALES)
            weights[key] = drawn * 0.05 + (1.0 if scales else 0.0)
        else:
            weights[key] = drawn / max(1, value[0].numel()) ** 0.5
        weights[key] = weights[key].to(value.dtype)
    return weights


def lora_on_all(model: ModelPatcher, seed: int, rank: int, without: str | None = None) -> dict:
    """A LoRA on every linear layer and every plain convolution, by native keys; none is made for transposed ones."""
    generator = torch.Generator().manual_seed(seed)
    state = {}
    for name, layer in model.model.named_modules():
        linear = hasattr(layer, "in_features") and hasattr(layer, "out_features")
        convolution = isinstance(layer, (torch.nn.Conv1d, torch.nn.Conv2d, torch.nn.Conv3d)) and layer.groups == 1
        if without is not None and without in name:
            continue
        if not name.startswith("diffusion_model.") or not (linear or convolution) or layer.weight is None:
            continue
        shape = (layer.out_features, layer.in_features) if linear else layer.weight.shape
        down = torch.randn(rank, *shape[1:], generator=generator)
        state[f"{name}.lora_down.weight"] = down / down[0].numel() ** 0.5
        ones = [1] * (len(shape) - 2)
        state[f"{name}.lora_up.weight"] = torch.randn(shape[0], rank, *ones, generator=generator) * 0.3
        state[f"{name}.alpha"] = torch.tensor(float(rank))
    return state


def with_lora(model: ModelPatcher, state: dict, strength: float):
    return comfy.sd.load_lora_for_models(model, None, state, strength, 0.0)[0]
