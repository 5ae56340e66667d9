"""The pair as two loaded models: the negative is encoded and predicted by a model of its own.

One more wrapper, CALC_COND_BATCH, sends the negative's entries, known by their uuid, to the second model.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

import comfy.model_patcher
import comfy.sampler_helpers
import comfy.samplers
from comfy.hooks import EnumHookMode
from comfy.model_base import BaseModel
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import WrapperExecutor, WrappersMP
from torch import Tensor

from .inheritance import Baseline, later_options, merged_options
from .run import KEY, Interval, Run
from .wrappers import Pair


class TwoModels(Pair):
    """Two loaded models."""

    def __init__(self, dispreferred: ModelPatcher, interval: Interval):
        super().__init__(dispreferred, interval)
        _warn_of_unused_wrappers(dispreferred)

    def start(self, guider: comfy.samplers.CFGGuider) -> Run:
        return TwoModelsRun(guider, self.interval, self.baseline, self.dispreferred)

    def wrappers(self) -> dict[str, Callable]:
        return {**super().wrappers(), WrappersMP.CALC_COND_BATCH: calc_cond_batch}


def _warn_of_unused_wrappers(dispreferred: ModelPatcher) -> None:
    for kind in (WrappersMP.OUTER_SAMPLE, WrappersMP.SAMPLER_SAMPLE, WrappersMP.PREDICT_NOISE):
        for name, wrappers in dispreferred.wrappers.get(kind, {}).items():
            if wrappers:
                logging.warning(
                    "CHATS: `%s` on the dispreferred model is not run there; put that node after CHATS Apply", name
                )


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
        self.raw_conds = {name: [entry.copy() for entry in entries] for name, entries in guider.conds.items()}

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
        return [self.model, *hooked, *self.model.get_nested_additional_models()]

    def _encode(self) -> list[dict]:
        """The negative as the dispreferred model encodes it.

        Positive and negative go through together, since areas and ControlNets of the one are completed from the other.
        """
        model, guider = self.model.model, self.guider
        if hasattr(guider.inner_model, "latent_shapes"):
            model.latent_shapes = guider.inner_model.latent_shapes
        comfy.samplers.cast_to_load_options(self.options, device=self.model.load_device, dtype=self.model.model_dtype())
        self.model.pre_run()
        conds = comfy.samplers.process_conds(model, conds=dict(self.raw_conds), **self.inputs)
        for entries in guider.conds.values():
            # ControlNets are shared by the two models: the preferred's preparation is to be the last.
            comfy.samplers.pre_run_control(guider.inner_model, entries)
        return conds["negative"]

    def predict(self, conds: list[list[dict] | None], x: Tensor, timestep: Tensor, model_options: dict) -> list[Tensor]:
        """The dispreferred model's predictions, under its own options and whatever this call changed in the run's."""
        later = later_options(model_options, self.started_with, leave_out=("multigpu_clones", "multigpu_thread_pool"))
        return comfy.samplers.calc_cond_batch(self.model.model, conds, x, timestep, merged_options(self.options, later))

    def _close(self) -> None:
        # ComfyUI itself cleans up the models that it loaded, but only after a run that succeeded.
        if self.model.model.current_patcher is self.model:
            self.model.cleanup()
        comfy.samplers.cast_to_load_options(self.options, device=self.model.offload_device)
        self.model.restore_hook_patches()


def calc_cond_batch(
    executor: WrapperExecutor,
    model: BaseModel,
    conds: list[list[dict] | None],
    x: Tensor,
    timestep: Tensor,
    model_options: dict,
) -> list[Tensor]:
    """CALC_COND_BATCH: each list of entries goes to its model, and keeps its place in the list (patches read
    ``cond_or_uncond``)."""
    run: TwoModelsRun | None = model_options.get(KEY)
    if run is None:
        return executor(model, conds, x, timestep, model_options)
    negative = [bool(entries and entries[0]["uuid"] in run.negative_uuids) for entries in conds]
    if not any(negative):
        return executor(model, conds, x, timestep, model_options)
    others = [None if n else entries for entries, n in zip(conds, negative, strict=True)]
    preferred = executor(model, others, x, timestep, model_options) if any(others) else others
    negatives = [entries if n else None for entries, n in zip(conds, negative, strict=True)]
    dispreferred = run.predict(negatives, x, timestep, model_options)
    # A place that is empty on both sides gets the dispreferred call's zeros, as it would from ComfyUI.
    return [p if entries else d for p, d, entries in zip(preferred, dispreferred, others, strict=True)]


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
