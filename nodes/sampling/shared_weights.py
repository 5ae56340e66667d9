"""The pair on one set of weights: both branches in one batched pass, the difference added to the rows of the
dispreferred one.

Where preferred and dispreferred are versions of one loaded model (LoRAs on one base, or a full model and a LoRA on it),
ComfyUI can hold only one version at a time. So the preferred's weights stay; the difference, a small model of its own,
is loaded beside them, and hooks that last as long as the run add what it changes, layer by layer.
"""

from __future__ import annotations

import logging
import uuid

import comfy.samplers
from comfy.model_patcher import ModelPatcher

from .difference_model import SharedDifference
from .inheritance import Baseline, option_difference
from .run import Interval, Run
from .shared_pass import SharedPass
from .wrappers import Pair

# Latents with a dimension of time may be regrouped inside of the network; of pictures, a batch stays a batch.
PICTURE_DIMENSIONS = 4


class SharedWeights(Pair):
    """Two versions of one loaded model.

    Raises:
        ValueError: when they are the same, or differ in more than plain LoRAs.
    """

    def __init__(self, preferred: ModelPatcher, dispreferred: ModelPatcher, interval: Interval):
        super().__init__(dispreferred, interval)
        if preferred.patches_uuid == dispreferred.patches_uuid:
            raise ValueError("`preferred` and `dispreferred` are the same model; connect the two members of a pair")
        if option := option_difference(preferred, dispreferred):
            raise ValueError(
                "`preferred` and `dispreferred` share one set of weights and differ in more than LoRAs: "
                f"`{option}`; put the node that sets it after CHATS Apply, or on the model before its LoRAs, or load "
                "the base twice, from two files"
            )
        self.difference = SharedDifference(preferred, dispreferred)

    def start(self, guider: comfy.samplers.CFGGuider) -> Run:
        return SharedWeightsRun(guider, self.interval, self.baseline, self.dispreferred, self.difference)


class SharedWeightsRun(Run):
    """A run on one set of weights: hooks, and which entries are the dispreferred model's."""

    patcher: ModelPatcher  # the difference, once prepared
    passes: tuple[SharedPass, ...] = ()

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

    def _prepare(self) -> list[ModelPatcher]:
        model = self.guider.model_patcher
        self.patcher = self.difference.patcher(model, self.baseline.with_later_patches(model, self.dispreferred))
        return [self.patcher]

    def _encode(self) -> list[dict]:
        noise = self.inputs["noise"]
        clones = self.guider.model_options.get("multigpu_clones", {}).values()
        models = [
            self.guider.inner_model,
            *(clone.model for clone in clones if clone.model is not self.guider.inner_model),
        ]
        batch, video = noise.shape[0], noise.ndim > PICTURE_DIMENSIONS
        # One for each model, since ComfyUI runs those of several GPUs in threads.
        self.passes = tuple(SharedPass(self.patcher.model, self._is_negative, batch, video) for _ in models)
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
