"""The pair as two loaded models: the negative is encoded and predicted by a model of its own."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager

import comfy.model_patcher
import comfy.sampler_helpers
import comfy.samplers
from comfy.hooks import EnumHookMode
from comfy.model_base import BaseModel
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import WrapperExecutor
from torch import Tensor

from .inheritance import Baseline, later_options, merged_options
from .other_nodes import (
    of_encodings,
    of_two_models,
    require_no_copies,
    require_no_runs_of_their_own,
    require_no_self_attention_guidance,
)
from .own_device import OwnDevice, own_device
from .run import Conds, Interval, Run
from .wrappers import Pair


class TwoModels(Pair):
    """Two loaded models.

    Raises:
        ValueError: when a node is on one of them that looks for the other's pass.
    """

    def __init__(self, preferred: ModelPatcher, dispreferred: ModelPatcher, interval: Interval):
        super().__init__(dispreferred, interval)
        require_no_self_attention_guidance(preferred=preferred, dispreferred=dispreferred)
        require_no_runs_of_their_own(preferred=preferred, dispreferred=dispreferred)
        require_no_copies(dispreferred)

    def sentences(self, model: ModelPatcher) -> list[str]:
        later = [patch for name, patch in model.object_patches.items() if name not in self.baseline.object_patches]
        return [*of_two_models(self.baseline.options, self.dispreferred), *of_encodings(later)]

    def start(self, guider: comfy.samplers.CFGGuider) -> Run:
        return TwoModelsRun(guider, self.interval, self.baseline, self.dispreferred)


class TwoModelsRun(Run):
    """A run on two loaded models: the dispreferred one's own conditioning and options."""

    model: ModelPatcher  # this run's clone of the dispreferred model, once prepared
    options: dict  # its model options, once prepared

    def __init__(
        self,
        guider: comfy.samplers.CFGGuider,
        interval: Interval,
        baseline: Baseline,
        dispreferred: ModelPatcher,
    ):
        super().__init__(guider, interval, baseline)
        self.dispreferred = dispreferred
        self.started_with = comfy.model_patcher.create_model_options_clone(guider.model_options)
        self.own_device: OwnDevice | None = None  # once prepared, where it is another than the preferred's

    def _prepare(self) -> list[ModelPatcher]:
        """As CFGGuider.sample does for its own: later patches, hooks, options."""
        _copy_hooks(self.raw_conds)
        base = self.dispreferred
        if hasattr(base, "get_non_dynamic_delegate") and _has_hooks(self.raw_conds):
            base = base.get_non_dynamic_delegate()
        self.model, self.options = self.baseline.hand_on(self.guider.model_patcher, base)
        self.options.pop("context_handler", None)  # the preferred's context windows are around both models
        if comfy.samplers.get_total_hook_groups_in_conds(self.raw_conds) <= 1:
            self.model.hook_mode = EnumHookMode.MinVram
        comfy.sampler_helpers.prepare_model_patcher(self.model, self.raw_conds, self.options)
        comfy.samplers.filter_registered_hooks_on_conds(self.raw_conds, self.options)
        hooked = comfy.sampler_helpers.get_additional_models_from_model_options(self.options)
        models = [self.model, *hooked, *self.model.get_nested_additional_models()]
        self.own_device = own_device(self.guider.model_patcher, self.model, self.raw_conds)
        return models if self.own_device is None else [*models, *self.own_device.models()]

    def _encode(self) -> list[dict]:
        model, guider = self.model.model, self.guider
        if hasattr(guider.inner_model, "latent_shapes"):
            model.latent_shapes = guider.inner_model.latent_shapes
        comfy.samplers.cast_to_load_options(self.options, device=self.model.load_device, dtype=self.model.model_dtype())
        self.model.pre_run()
        if self.own_device is None:
            return self.encode_anew(model)
        return self.own_device.encode(self.encode_anew, model, self.inputs)

    def call(self) -> AbstractContextManager[None]:
        return super().call() if self.own_device is None else self.own_device.call()

    def begin(
        self, executor: WrapperExecutor, model: BaseModel, conds: Conds, x: Tensor, timestep: Tensor, options: dict
    ) -> Callable[[], list[Tensor]]:
        if self.own_device is None:
            return super().begin(executor, model, conds, x, timestep, options)
        return self.own_device.begin(self.model.model, conds, x, timestep, self.options_of_dispreferred(options))

    def predict(
        self, executor: WrapperExecutor, model: BaseModel, conds: Conds, x: Tensor, timestep: Tensor, options: dict
    ) -> list[Tensor]:
        own = self.options_of_dispreferred(options)
        return comfy.samplers.calc_cond_batch(self.model.model, conds, x, timestep, own)

    def options_of_dispreferred(self, options: dict) -> dict:
        """Its own, and whatever this call changed in the run's."""
        later = later_options(options, self.started_with, leave_out=("multigpu_clones", "multigpu_thread_pool"))
        return merged_options(self.options, later)

    def patcher_of_dispreferred(self) -> ModelPatcher:
        return self.model

    def _close(self) -> None:
        if self.own_device is not None:
            self.own_device.close()
        # ComfyUI itself cleans up the models that it loaded, but only after a run that succeeded.
        if self.model.model.current_patcher is self.model:
            self.model.cleanup()
        comfy.samplers.cast_to_load_options(self.options, device=self.model.offload_device)
        self.model.restore_hook_patches()


def _has_hooks(conds: dict[str, list[dict]]) -> bool:
    controls = [entry["control"] for entries in conds.values() for entry in entries if "control" in entry]
    return any("hooks" in entry for entries in conds.values() for entry in entries) or any(
        c.get_extra_hooks() for c in controls
    )


def _copy_hooks(conds: dict[str, list[dict]]) -> None:
    """Gives the entries hooks of their own: a keyframe reports each change once, and the preferred must hear of it
    too."""
    groups, keyframes = {}, {}
    for entry in (entry for entries in conds.values() for entry in entries if entry.get("hooks") is not None):
        group = entry["hooks"]
        if group not in groups:
            groups[group] = group.clone()
            for hook in groups[group].hooks:
                schedule = hook.hook_keyframe
                if schedule not in keyframes:
                    keyframes[schedule] = schedule.clone()
                hook.hook_keyframe = keyframes[schedule]
        entry["hooks"] = groups[group]
