"""The pair on ONE set of weights: both branches in one batched pass, the difference added to the rows of the
dispreferred one.

Where preferred and dispreferred are versions of one loaded model (LoRAs on one base, or a full model and a LoRA on it),
ComfyUI holds one version at a time. So the preferred's weights stay, and forward hooks add what the dispreferred's
would change, layer by layer:

- OUTER_SAMPLE lets the difference, a small model of its own, be loaded beside the weights, where ComfyUI counts it;
- SAMPLER_SAMPLE marks the negative's entries by new uuids and sets the hooks, which are gone when the run ends;
- the hooks find the rows by the uuids of each pass, so it does not matter whether ComfyUI runs the branches together or
  apart.
"""

from __future__ import annotations

import logging
import uuid
from collections.abc import Callable, Mapping

import comfy.model_management
import comfy.utils
import torch
from comfy.model_base import BaseModel
from comfy.model_patcher import ModelPatcher
from torch import Tensor
from torch.nn import functional

from ...chats.lowrank import LowRank, add_to_conv, add_to_linear
from .differences import InexpressibleError, weight_differences
from .run import Run

CONVOLUTIONS = (torch.nn.Conv1d, torch.nn.Conv2d, torch.nn.Conv3d)
# Latents with a dimension of time may be regrouped inside of the network; of pictures, a batch stays a batch.
PICTURE_DIMENSIONS = 4


class LayerDifference(torch.nn.Module):
    """What one layer's weights have more in the dispreferred model: factors of a matrix or kernel, and vectors.
    ``layer_name`` is its path.

    ``down`` [rank, in, *kernel] and ``up`` [out, rank]; ``weight`` [channels] of a norm; ``bias`` [out].
    """

    def __init__(self, layer_name: str, parts: Mapping[str, LowRank | Tensor], dtype: torch.dtype):
        super().__init__()
        self.layer_name = layer_name
        low, bias = parts.get("weight"), parts.get("bias")
        tensors = {"down": None, "up": None, "weight": None, "bias": bias}
        tensors |= {"down": low.down, "up": low.up} if isinstance(low, LowRank) else {"weight": low}
        for name, tensor in tensors.items():
            self.register_parameter(
                name, None if tensor is None else torch.nn.Parameter(tensor.to(dtype), requires_grad=False)
            )

    def part(self, name: str, like: Tensor) -> Tensor | None:
        """A parameter on the device and in the dtype of ``like``; both are right already unless ComfyUI samples on
        several GPUs."""
        parameter = getattr(self, name)
        return None if parameter is None else parameter.to(like.device, like.dtype)

    def add(self, layer: torch.nn.Module, output: Tensor, inputs: Tensor, rows: slice) -> None:
        """Adds the difference to some rows of the layer's output, in place."""
        bias = self.part("bias", output)
        if _is_norm(layer):
            output[rows].add_(_norm(layer, inputs[rows], self.part("weight", inputs), bias))
            return
        if self.down is not None:
            factors = LowRank(self.part("down", inputs), self.part("up", inputs))
            if isinstance(layer, CONVOLUTIONS):
                add_to_conv(output, inputs, factors, rows, layer.stride, layer.padding, layer.dilation)
            else:
                add_to_linear(output, inputs, factors, rows)
        if bias is not None:
            output[rows].add_(bias.reshape(-1, *[1] * (output.ndim - 2)) if isinstance(layer, CONVOLUTIONS) else bias)


def _is_norm(layer: torch.nn.Module) -> bool:
    # Older ComfyUIs have RMSNorms of their own, one in each architecture.
    return isinstance(layer, torch.nn.GroupNorm | torch.nn.LayerNorm) or type(layer).__name__ == "RMSNorm"


def _norm(layer: torch.nn.Module, inputs: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    """What a change of weight and bias adds to a norm's output: the norm is linear in both."""
    if type(layer).__name__ == "RMSNorm":
        return functional.rms_norm(inputs, weight.shape, weight, layer.eps)
    if weight is None:
        weight = torch.zeros_like(bias)
    if isinstance(layer, torch.nn.GroupNorm):
        return functional.group_norm(inputs, layer.num_groups, weight, bias, layer.eps)
    return functional.layer_norm(inputs, layer.normalized_shape, weight, bias, layer.eps)


class Difference(torch.nn.Module):
    """All that the dispreferred version of a model has beyond the preferred one, in the dtype that the model computes
    in."""

    def __init__(self, model: ModelPatcher, dispreferred_patches: Mapping[str, list]):
        super().__init__()
        layers: dict[str, dict[str, LowRank | Tensor]] = {}
        for key, value in weight_differences(model.model, model.patches, dispreferred_patches).items():
            name, _, part = key.rpartition(".")
            layers.setdefault(name, {})[part] = value
        for name, parts in layers.items():
            _check_layer(name, comfy.utils.get_attr(model.model, name), parts)
        dtype = getattr(model.model, "manual_cast_dtype", None) or model.model_dtype()
        self.layers = torch.nn.ModuleList(LayerDifference(name, parts, dtype) for name, parts in layers.items())

    def patcher(self, model: ModelPatcher) -> ModelPatcher:
        """This difference as a model that ComfyUI loads, counts and offloads, where ``model`` is."""
        size = comfy.model_management.module_size(self)
        return ModelPatcher(self, load_device=model.load_device, offload_device=model.offload_device, size=size)


def _check_layer(name: str, layer: torch.nn.Module, parts: Mapping[str, LowRank | Tensor]) -> None:
    """Raises InexpressibleError unless the layer is of a kind whose output a difference can be added to."""
    low = parts.get("weight")
    linear = isinstance(layer, torch.nn.Linear) or (hasattr(layer, "in_features") and hasattr(layer, "out_features"))
    plain_conv = isinstance(layer, CONVOLUTIONS) and layer.groups == 1 and layer.padding_mode == "zeros"
    fits = _is_norm(layer) if isinstance(low, Tensor) else linear or plain_conv or (low is None and _is_norm(layer))
    if not fits or not parts.keys() <= {"weight", "bias"}:
        raise InexpressibleError(f"`{name}` is a {type(layer).__name__} whose {' and '.join(sorted(parts))} differ")


class SharedPass:
    """The hooks of one run on one model.

    Args:
        difference: what to add.
        is_negative: whether an entry of a pass, known by its uuid, belongs to the dispreferred model.
        batch: pictures in a run, which is the rows that each entry has in a pass.
        video: whether latents have a dimension of time.
    """

    def __init__(self, difference: Difference, is_negative: Callable[[uuid.UUID], bool], batch: int, video: bool):
        self.difference, self.is_negative, self.batch, self.video = difference, is_negative, batch, video
        self.rows: list[range] = []  # of the pass under way, that the difference is added to
        self.total = 0  # rows of the pass under way
        self.reached: set[str] = set()
        self.passes = 0  # that had rows of the dispreferred model
        self.handles: list[torch.utils.hooks.RemovableHandle] = []

    def attach(self, model: BaseModel) -> None:
        network = model.diffusion_model
        self.handles.append(network.register_forward_pre_hook(self._begin, with_kwargs=True))
        self.handles.append(network.register_forward_hook(self._end, always_call=True))
        for layer in self.difference.layers:
            self.handles.append(comfy.utils.get_attr(model, layer.layer_name).register_forward_hook(self._adder(layer)))

    def detach(self) -> None:
        for handle in self.handles:
            handle.remove()
        self.handles.clear()

    def unreached(self) -> list[str]:
        """Layers whose difference was never added although there was cause to: something computes past them."""
        return (
            [layer.layer_name for layer in self.difference.layers if layer.layer_name not in self.reached]
            if self.passes
            else []
        )

    def _begin(self, network: torch.nn.Module, args: tuple, kwargs: dict) -> None:
        """Before a pass of the network: which of its rows are the dispreferred model's.

        Entry after entry, each has ``batch`` rows; a node that runs tiles in one batch repeats all of them for each
        tile.
        """
        negative = [self.is_negative(entry) for entry in kwargs.get("transformer_options", {}).get("uuids", ())]
        if not any(negative):
            return
        self.total = args[0].shape[0]
        times, rest = divmod(self.total, self.batch * len(negative))
        in_tiles = times > 1 and (all(negative) or _repeats(kwargs.get("context"), self.total, times))
        if rest or not (times == 1 or in_tiles):
            raise _regrouped(f"a pass has {self.total} rows, {len(negative)} entries of {self.batch} were to be in it")
        self.passes += 1
        for index, chosen in enumerate(negative * times):
            start, stop = index * self.batch, (index + 1) * self.batch
            if chosen and self.rows and self.rows[-1].stop == start:
                self.rows[-1] = range(self.rows[-1].start, stop)
            elif chosen:
                self.rows.append(range(start, stop))

    def _end(self, *_: object) -> None:
        self.rows = []

    def _adder(self, layer: LayerDifference) -> Callable[[torch.nn.Module, tuple, Tensor], None]:
        def add(module: torch.nn.Module, args: tuple, output: Tensor) -> None:
            if not self.rows:
                return
            self.reached.add(layer.layer_name)
            inputs = args[0]
            times, rest = divmod(inputs.shape[0], self.total)
            if rest or (times != 1 and not self.video):
                raise _regrouped(f"`{layer.layer_name}` was given {inputs.shape[0]} rows in a pass of {self.total}")
            for rows in self.rows:
                layer.add(module, output, inputs, slice(rows.start * times, rows.stop * times))

        return add


def _repeats(context: Tensor | None, rows: int, times: int) -> bool:
    """Whether the rows of a pass are those of a plain one several times over, as their prompts [rows, tokens, dim]
    tell.

    Not where they would also be each row several times over, which is so of equal prompts.
    """
    if context is None or context.shape[0] != rows:
        return False
    plain = context[: rows // times]
    over_and_over = torch.equal(context, torch.cat([plain] * times))
    return over_and_over and not torch.equal(context, plain.repeat_interleave(times, dim=0))


def _regrouped(what: str) -> RuntimeError:
    return RuntimeError(
        f"CHATS: {what}, so it is not known which are the dispreferred model's; a node on the model regroups the "
        "batch: "
        "remove it, or load the base twice, from two files"
    )


class SharedDifference:
    """The difference of two versions of one model, kept from run to run: made when they are joined, so that what cannot
    be expressed is an error there, and made anew only when patches were added since."""

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


class SharedWeightsRun(Run):
    """A run on one set of weights: hooks, and which entries are the dispreferred model's."""

    passes: tuple[SharedPass, ...] = ()

    def _prepare(self) -> list[ModelPatcher]:
        model = self.guider.model_patcher
        self.patcher = self.pair.shared.patcher(
            model, self.pair.baseline.with_later_patches(model, self.pair.dispreferred)
        )
        return [self.patcher]

    def _encode(self) -> list[dict]:
        noise = self.inputs["noise"]
        clones = self.guider.model_options.get("multigpu_clones", {}).values()
        models = [
            self.guider.inner_model,
            *(clone.model for clone in clones if clone.model is not self.guider.inner_model),
        ]
        options = dict(batch=noise.shape[0], video=noise.ndim > PICTURE_DIMENSIONS)
        # One for each model, since ComfyUI runs those of several GPUs in threads.
        self.passes = tuple(SharedPass(self.patcher.model, self._is_negative, **options) for _ in models)
        for shared, model in zip(self.passes, models, strict=True):
            shared.attach(model)
        return self.guider.conds["negative"]

    def _is_negative(self, entry: uuid.UUID) -> bool:
        return entry in self.negative_uuids

    def _close(self) -> None:
        for shared in self.passes:
            shared.detach()
        if self.passes and (names := self.passes[0].unreached()):
            logging.warning(
                "CHATS: %d of %d layers of the difference had no effect, the first is `%s`; a node on the model "
                "computes past them",
                len(names),
                len(self.patcher.model.layers),
                names[0],
            )
