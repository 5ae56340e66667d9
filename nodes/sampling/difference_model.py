"""The difference of two versions of one model as a small model of its own, which ComfyUI loads, counts and offloads."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, cast

import comfy.model_management
import comfy.utils
import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor
from torch.nn import functional

from ...chats.lowrank import LowRank, add_to_conv, add_to_linear
from .differences import InexpressibleError, weight_differences
from .inheritance import ejected

# A module of a network. No class is common to all kinds: older ComfyUIs have RMSNorms of their own, one in each
# architecture.
Layer = Any


class LayerDifference(torch.nn.Module):
    """What one layer's weights have more in the dispreferred model: factors of a matrix or kernel, and vectors.
    ``layer_name`` is its path.

    ``down`` [rank, in, *kernel] and ``up`` [out, rank]; ``weight`` [channels] of a norm; ``bias`` [out].
    """

    reached = False  # whether the run under way went through the layer

    def __init__(self, layer_name: str, parts: Mapping[str, LowRank | Tensor], dtype: torch.dtype):
        super().__init__()
        self.layer_name = layer_name
        tensors: dict[str, Tensor] = {}
        for part, value in parts.items():
            tensors |= {"down": value.down, "up": value.up} if isinstance(value, LowRank) else {part: value}
        for name in ("down", "up", "weight", "bias"):
            tensor = tensors.get(name)
            self.register_parameter(
                name, None if tensor is None else torch.nn.Parameter(tensor.to(dtype), requires_grad=False)
            )

    def part(self, name: str, like: Tensor) -> Tensor | None:
        """A parameter on the device and in the dtype of ``like``; both are right already unless ComfyUI samples on
        several GPUs."""
        parameter = getattr(self, name)
        return None if parameter is None else parameter.to(like.device, like.dtype)

    def add(self, layer: Layer, output: Tensor, inputs: Tensor, rows: slice) -> None:
        """Adds the difference to some rows of the layer's output, in place."""
        bias = self.part("bias", output)
        if _is_norm(layer):
            output[rows].add_(_norm(layer, inputs[rows], self.part("weight", inputs), bias))
            return
        down, up = self.part("down", inputs), self.part("up", inputs)
        if down is not None and up is not None:
            factors = LowRank(down, up)
            if _is_conv(layer):
                add_to_conv(output, inputs, factors, rows, layer.stride, layer.padding, layer.dilation)
            else:
                add_to_linear(output, inputs, factors, rows)
        if bias is not None:
            output[rows].add_(bias.reshape(-1, *[1] * (output.ndim - 2)) if _is_conv(layer) else bias)


def _is_conv(layer: Layer) -> bool:
    return isinstance(layer, torch.nn.Conv1d | torch.nn.Conv2d | torch.nn.Conv3d)


def _is_norm(layer: Layer) -> bool:
    return isinstance(layer, torch.nn.GroupNorm | torch.nn.LayerNorm) or type(layer).__name__ == "RMSNorm"


def _norm(layer: Layer, inputs: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    """What a change of weight and bias adds to a norm's output: the norm is linear in both."""
    if weight is None:
        assert bias is not None
        weight = torch.zeros_like(bias)
    if type(layer).__name__ == "RMSNorm":
        return functional.rms_norm(inputs, weight.shape, weight, layer.eps)
    if isinstance(layer, torch.nn.GroupNorm):
        return functional.group_norm(inputs, layer.num_groups, weight, bias, layer.eps)
    return functional.layer_norm(inputs, layer.normalized_shape, weight, bias, layer.eps)


class Difference(torch.nn.Module):
    """All that the dispreferred version of a model has beyond the preferred one, in the dtype that the model computes
    in; iterates over its layers."""

    def __init__(self, model: ModelPatcher, dispreferred_patches: Mapping[str, list]):
        super().__init__()
        layers: dict[str, dict[str, LowRank | Tensor]] = {}
        with ejected(model):
            for key, value in weight_differences(model.model, model.patches, dispreferred_patches).items():
                name, _, part = key.rpartition(".")
                layers.setdefault(name, {})[part] = value
            for name, parts in layers.items():
                _check_layer(name, comfy.utils.get_attr(model.model, name), parts)
        dtype = getattr(model.model, "manual_cast_dtype", None) or model.model_dtype()
        self.layers = torch.nn.ModuleList(LayerDifference(name, parts, dtype) for name, parts in layers.items())

    def __iter__(self) -> Iterator[LayerDifference]:
        return iter(cast(Iterable[LayerDifference], self.layers))

    def patcher(self, model: ModelPatcher) -> ModelPatcher:
        """This difference as a model that ComfyUI loads, counts and offloads, where ``model`` is."""
        size = comfy.model_management.module_size(self)
        return ModelPatcher(self, load_device=model.load_device, offload_device=model.offload_device, size=size)


def _check_layer(name: str, layer: Layer, parts: Mapping[str, LowRank | Tensor]) -> None:
    """Raises InexpressibleError unless the layer is of a kind whose output a difference can be added to."""
    low = parts.get("weight")
    linear = isinstance(layer, torch.nn.Linear) or (hasattr(layer, "in_features") and hasattr(layer, "out_features"))
    plain_conv = _is_conv(layer) and layer.groups == 1 and layer.padding_mode == "zeros"
    fits = _is_norm(layer) if isinstance(low, Tensor) else linear or plain_conv or (low is None and _is_norm(layer))
    if not fits or not parts.keys() <= {"weight", "bias"}:
        raise InexpressibleError(f"`{name}` is a {type(layer).__name__} whose {' and '.join(sorted(parts))} differ")


class SharedDifference:
    """The difference of two versions of one model, kept from run to run: made when the two are joined, so that what
    cannot be expressed is an error there, and made anew only when patches were added since."""

    def __init__(self, preferred: ModelPatcher, dispreferred: ModelPatcher):
        self._made_of = (preferred.patches_uuid, dispreferred.patches_uuid)
        self._patcher = Difference(preferred, dispreferred.patches).patcher(preferred)

    def patcher(self, preferred: ModelPatcher, dispreferred: ModelPatcher) -> ModelPatcher:
        """The difference as a model to be loaded beside the weights."""
        made_of = (preferred.patches_uuid, dispreferred.patches_uuid)
        if made_of != self._made_of:
            self._patcher = Difference(preferred, dispreferred.patches).patcher(preferred)
            self._made_of = made_of
        return self._patcher
