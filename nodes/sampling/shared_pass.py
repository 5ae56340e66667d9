"""One pass of the network for both branches: hooks on its layers add the difference to the dispreferred model's rows.

The rows are found by the uuids of each pass, so it does not matter whether ComfyUI runs the branches together or apart.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable

import comfy.utils
import torch
from comfy.model_base import BaseModel
from torch import Tensor

from .difference_model import Difference, LayerDifference


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
        self.rows: list[range] = []  # the dispreferred model's, in the pass under way
        self.total = 0  # rows of the pass under way
        self.reached: set[str] = set()  # names of layers
        self.passes = 0  # how many had rows of the dispreferred model
        self.handles: list[torch.utils.hooks.RemovableHandle] = []

    def attach(self, model: BaseModel) -> None:
        network = model.diffusion_model
        self.handles.append(network.register_forward_pre_hook(self._begin, with_kwargs=True))
        self.handles.append(network.register_forward_hook(self._end, always_call=True))
        for layer in self.difference:
            self.handles.append(comfy.utils.get_attr(model, layer.layer_name).register_forward_hook(self._adder(layer)))

    def detach(self) -> None:
        for handle in self.handles:
            handle.remove()
        self.handles.clear()

    def unreached(self) -> list[str]:
        """Layers that no pass with rows of the dispreferred model went through: something computes past them."""
        if not self.passes:
            return []
        return [layer.layer_name for layer in self.difference if layer.layer_name not in self.reached]

    def _begin(self, network: torch.nn.Module, args: tuple, kwargs: dict) -> None:
        """Before a pass of the network: finds which of its rows are the dispreferred model's.

        Each entry has ``batch`` rows, one entry after another. A node that runs tiles in one batch repeats this order
        for each tile.
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
    """Whether the prompts of a pass, [rows, tokens, dim], are those of a plain pass, repeated as a whole.

    False too where it cannot be told whether the whole or each row was repeated, as with equal prompts.
    """
    if context is None or context.shape[0] != rows:
        return False
    plain = context[: rows // times]
    over_and_over = torch.equal(context, torch.cat([plain] * times))
    return over_and_over and not torch.equal(context, plain.repeat_interleave(times, dim=0))


def _regrouped(what: str) -> RuntimeError:
    return RuntimeError(
        f"CHATS: {what}, so it is not known which are the dispreferred model's; a node on the model regroups the "
        "batch: remove it, or load the base twice, from two files"
    )
