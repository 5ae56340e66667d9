"""The pair on one set of weights: the difference is added where the dispreferred one computes.

Where preferred and dispreferred are versions of one loaded model (LoRAs on one base, or a full model and a LoRA on it),
ComfyUI can hold only one version at a time. So the preferred's weights stay; the difference, a small model of its own,
is loaded beside them, and for as long as the run lasts the layers add what it changes.

Both branches run as one batch where it is known which rows are whose: pictures, as long as each layer has the rows of
the pass. Else each runs in a pass of its own, in which nothing has to be known.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import MappingProxyType
from typing import Any

import comfy.samplers
import comfy.utils
import torch
from comfy.model_base import BaseModel
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import WrapperExecutor, WrappersMP
from torch import Tensor

from .difference_model import SharedDifference
from .inheritance import Baseline, ejected, option_difference
from .run import KEY, Conds, Interval, Run
from .shared_pass import SharedPass
from .wrappers import Pair

# With a dimension of time (video, sound), a layer's first dimension may be time or space, and be as long as the pass by
# chance; ACE-Step 1.5 gives the first row of a pass what it computes of all.
PICTURE_DIMENSIONS = 4


class SharedWeights(Pair):
    """Two versions of one loaded model.

    Raises:
        ValueError: when they are the same, or differ in more than plain LoRAs.
    """

    def __init__(self, preferred: ModelPatcher, dispreferred: ModelPatcher, interval: Interval):
        super().__init__(dispreferred, interval)
        if option := option_difference(preferred, dispreferred):
            raise ValueError(
                "`preferred` and `dispreferred` share one set of weights and differ in more than LoRAs: "
                f"`{option}`; put the node that sets it after CHATS Apply, or on the model before its LoRAs, or load "
                "the base twice, from two files"
            )
        if preferred.patches_uuid == dispreferred.patches_uuid:
            raise ValueError("`preferred` and `dispreferred` are the same model; connect the two members of a pair")
        self.difference = SharedDifference(preferred, dispreferred)

    def start(self, guider: comfy.samplers.CFGGuider) -> Run:
        return SharedWeightsRun(guider, self.interval, self.baseline, self.dispreferred, self.difference)


class SharedWeightsRun(Run):
    """A run on one set of weights."""

    patcher: ModelPatcher  # the difference, once prepared
    passes: Mapping[BaseModel, SharedPass] = MappingProxyType({})
    shares_wrappers = True

    def __init__(
        self,
        guider: comfy.samplers.CFGGuider,
        interval: Interval,
        baseline: Baseline,
        dispreferred: ModelPatcher,
        difference: SharedDifference,
    ):
        super().__init__(guider, interval, baseline)
        self.dispreferred, self.difference = dispreferred, difference
        self.watches: list[torch.utils.hooks.RemovableHandle] = []
        self.encodes = False  # whether conditioning goes through a layer of the difference
        # The last of its kind: nearest to the network, and outside of what torch.compile compiles.
        wrappers = guider.model_options["transformer_options"]["wrappers"]
        wrappers[WrappersMP.APPLY_MODEL] = {**wrappers.get(WrappersMP.APPLY_MODEL, {}), KEY: [self.apply_model]}

    def _prepare(self) -> list[ModelPatcher]:
        model = self.guider.model_patcher
        self.patcher = self.difference.patcher(model, self.baseline.with_later_patches(model, self.dispreferred))
        # Layers that are run now, before the sampler, are those that conditioning goes through.
        with ejected(model):
            modules = [comfy.utils.get_attr(model.model, layer.layer_name) for layer in self.patcher.model]
        for module in modules:
            self.watches.append(module.register_forward_pre_hook(self._note_encoding))
        self.encodes = "noise" in self.inputs  # in the middle of a run it is encoded already, and not seen
        return [self.patcher]

    def _note_encoding(self, *_: object) -> None:
        self.encodes = True

    def _unwatch(self) -> None:
        for watch in self.watches:
            watch.remove()
        self.watches.clear()

    def _encode(self) -> list[dict]:
        self._unwatch()
        noise = self.inputs["noise"]
        clones = self.guider.model_options.get("multigpu_clones", {}).values()
        # One for each model, since ComfyUI runs those of several GPUs in threads.
        patchers = [self.guider.model_patcher, *clones]
        self.passes = {each.model: SharedPass(self.patcher.model, noise.shape[0]) for each in patchers}
        for each in patchers:
            with ejected(each):
                layers = [comfy.utils.get_attr(each.model, layer.layer_name) for layer in self.patcher.model]
            self.passes[each.model].attach(layers)
        packed = len(self.inputs.get("latent_shapes") or ()) > 1  # video with its sound
        self.apart = packed or noise.ndim != PICTURE_DIMENSIONS
        if not self.encodes:
            return self.guider.conds["negative"]
        with self.passes[self.guider.inner_model].encoding():
            return self.encode_anew(self.guider.inner_model)

    @contextmanager
    def call(self) -> Iterator[None]:
        for shared in self.passes.values():
            shared.outside = None
        yield
        if names := [shared.outside for shared in self.passes.values() if shared.outside]:
            raise RuntimeError(
                f"CHATS: `{names[0]}` was run outside of the model's own pass, by a node that computes a part of the "
                "network itself, where the dispreferred model's difference is not added; remove that node, or load "
                "the base twice, from two files"
            )

    def apply_model(self, executor: WrapperExecutor, x: Tensor, t: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """APPLY_MODEL: around each pass of the network."""
        shared = self.passes.get(executor.class_obj)
        if shared is None:
            return executor(x, t, *args, **kwargs)
        with shared.under_way(self._negative(*args, **kwargs), x.shape[0]):
            return executor(x, t, *args, **kwargs)

    def _negative(
        self,
        c_concat: object = None,
        c_crossattn: object = None,
        control: object = None,
        transformer_options: Mapping = MappingProxyType({}),
        **_: object,
    ) -> list[bool]:
        """For each entry of a pass, whether it is the dispreferred's; the parameters are ``apply_model``'s."""
        if self.running is not None:
            return [self.running == "dispreferred"]
        return [entry in self.negative_uuids for entry in transformer_options.get("uuids", ())]

    def predict(
        self, executor: WrapperExecutor, model: BaseModel, conds: Conds, x: Tensor, timestep: Tensor, options: dict
    ) -> list[Tensor]:
        return executor(model, conds, x, timestep, options)

    def options_of_dispreferred(self, options: dict) -> dict:
        return options

    def patcher_of_dispreferred(self) -> ModelPatcher:
        return self.guider.model_patcher

    def _close(self) -> None:
        self._unwatch()
        for shared in self.passes.values():
            shared.detach()
        for shared in self.passes.values():
            if names := shared.unreached():
                logging.warning(
                    "CHATS: %d of %d layers of the difference had no effect, the first is `%s`: this run has no use "
                    "for them, or a node on the model computes past them",
                    len(names),
                    len(self.patcher.model.layers),
                    names[0],
                )
                break
