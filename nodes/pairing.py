"""The mechanism: one MODEL whose negative pass runs on a second model.

Four of ComfyUI's sampling wrappers do it, so every sampler node works and no global is touched:

- OUTER_SAMPLE readies the dispreferred model for this run and lets the preferred's own load call bring it along;
- SAMPLER_SAMPLE re-encodes the negative with the dispreferred model, once both are loaded;
- PREDICT_NOISE sets the guidance to neutral outside the interval, and loads a dispreferred model first needed late;
- CALC_COND_BATCH sends the negative's entries, known by their uuid, to the dispreferred model.

Everything a run needs lives in a :class:`_Run` in the run's own model options, never in the patched model: ComfyUI copies
models freely, and samples in threads on several GPUs.
"""

from __future__ import annotations

import logging
import math
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import comfy.model_management
import comfy.model_patcher
import comfy.sampler_helpers
import comfy.samplers
from comfy.hooks import EnumHookMode
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import WrappersMP
from torch import Tensor

from .inheritance import Baseline, later_options, merged_options

KEY = "chats"
# A guider's own weights of the negative pass, by attribute (CFGGuider and kin, DualCFGGuider, PerpNegGuider), at which it has no effect.
NEUTRAL_GUIDANCE = {"cfg": 1.0, "cfg2": 1.0, "neg_scale": 0.0}


def pair_models(preferred: ModelPatcher, dispreferred: ModelPatcher, start_percent: float, end_percent: float) -> ModelPatcher:
    """A clone of ``preferred`` whose negative pass runs on ``dispreferred`` in every sampler.

    Args:
        preferred: the model of the positive pass; samplers see its noise schedule.
        dispreferred: the model of the negative pass, left as it is.
        start_percent: share of the schedule from which the dispreferred model guides; before it, cfg is 1.
        end_percent: share of the schedule up to which it guides; after it, cfg is 1.

    What wraps a whole run or guided step (caching nodes) can be there only once, on the model that is sampled.
    """
    for kind in (WrappersMP.OUTER_SAMPLE, WrappersMP.SAMPLER_SAMPLE, WrappersMP.PREDICT_NOISE):
        for name, wrappers in dispreferred.wrappers.get(kind, {}).items():
            if wrappers:
                logging.warning("CHATS: `%s` on the dispreferred model is not run there; put that node after CHATS Apply", name)
    model = preferred.clone()
    pair = _Pair(dispreferred, start_percent, end_percent)
    for kind, wrapper in pair.wrappers().items():
        model.add_wrapper_with_key(kind, KEY, wrapper)
    pair.baseline = Baseline.of(model)
    return model


def is_paired(model: ModelPatcher) -> bool:
    """Whether the model already carries a pair."""
    return bool(model.get_wrappers(WrappersMP.CALC_COND_BATCH, KEY))


@dataclass
class _Pair:
    """What stays the same from run to run: the dispreferred model, the interval, and the preferred as it was when joined."""

    dispreferred: ModelPatcher
    start_percent: float
    end_percent: float
    baseline: Baseline = field(init=False)

    def wrappers(self) -> dict[str, Callable]:
        return {
            WrappersMP.OUTER_SAMPLE: self.outer_sample,
            WrappersMP.SAMPLER_SAMPLE: sampler_sample,
            WrappersMP.PREDICT_NOISE: predict_noise,
            WrappersMP.CALC_COND_BATCH: calc_cond_batch,
        }

    def outer_sample(self, executor, noise, latent_image, sampler, sigmas, *args, **kwargs):
        """OUTER_SAMPLE: around the whole run, before the models are loaded."""
        guider = executor.class_obj
        if not guider.conds.get("negative"):
            logging.warning("CHATS: %s has no negative, so the dispreferred model is not used; use another guider", type(guider).__name__)
            return executor(noise, latent_image, sampler, sigmas, *args, **kwargs)
        run = _Run(self, guider, {name: value for name, value in kwargs.items() if name == "latent_shapes"})
        try:
            if run.needs_negative(guider.model_options) and any(map(run.guides_at, sigmas[:-1].tolist())):
                run.prepare()
                # A conditioning entry may name models to be loaded with the main one: both come in one load call.
                first, *others = guider.conds["negative"]
                loaded_with = [*first.get("additional_models", []), *run.models()]
                guider.conds["negative"] = [{**first, "additional_models": loaded_with}, *others]
            return executor(noise, latent_image, sampler, sigmas, *args, **kwargs)
        finally:
            run.close()


class _Run:
    """One run of one sampler: the dispreferred model's own conditioning and options."""

    def __init__(self, pair: _Pair, guider: comfy.samplers.CFGGuider, process_options: dict):
        self.pair = pair
        self.guider = guider
        self.process_options = process_options  # what this version of ComfyUI wants in process_conds beside the arguments of all
        pair.baseline.order_wrappers(guider.model_options, KEY)
        guider.model_options[KEY] = self
        self.started_with = comfy.model_patcher.create_model_options_clone(guider.model_options)
        self.raw_conds = {name: [entry.copy() for entry in entries] for name, entries in guider.conds.items()}
        sampling = guider.model_patcher.get_model_object("model_sampling")
        self.sigma_start = float(sampling.percent_to_sigma(pair.start_percent))
        self.sigma_end = float(sampling.percent_to_sigma(pair.end_percent))
        self.model: ModelPatcher | None = None  # this run's clone of the dispreferred model
        self.options: dict = {}
        self.inputs: dict | None = None  # what the negative is encoded with, known from SAMPLER_SAMPLE on
        self.negative_uuids: frozenset[uuid.UUID] = frozenset()

    def guides_at(self, sigma: Tensor | float) -> bool:
        """Whether the dispreferred model guides at this noise level. The whole interval asks nothing of the GPU."""
        if self.pair.start_percent <= 0 and self.pair.end_percent >= 1:
            return True
        return self.sigma_end <= float(sigma) <= self.sigma_start

    def needs_negative(self, model_options: dict) -> bool:
        """Whether the guider, as it stands, will ask for the negative pass; only the stock guider is known to skip it at cfg 1."""
        stock = type(self.guider).predict_noise is comfy.samplers.CFGGuider.predict_noise
        return not (stock and math.isclose(self.guider.cfg, 1.0)) or model_options.get("disable_cfg1_optimization", False)

    def prepare(self) -> None:
        """Readies the dispreferred model before loading, as CFGGuider.sample does for its own: later patches, hooks, options."""
        _copy_hooks(self.raw_conds)
        base = self.pair.dispreferred
        if hasattr(base, "get_non_dynamic_delegate") and _has_hooks(self.raw_conds):
            base = base.get_non_dynamic_delegate()
        self.model, self.options = self.pair.baseline.hand_on(self.guider.model_patcher, base)
        self.options.pop("context_handler", None)  # the preferred's context windows are around both models
        if comfy.samplers.get_total_hook_groups_in_conds(self.raw_conds) <= 1:
            self.model.hook_mode = EnumHookMode.MinVram
        comfy.sampler_helpers.prepare_model_patcher(self.model, self.raw_conds, self.options)
        comfy.samplers.filter_registered_hooks_on_conds(self.raw_conds, self.options)

    def models(self) -> list[ModelPatcher]:
        """The dispreferred model and whatever it needs loaded beside it."""
        hooked = comfy.sampler_helpers.get_additional_models_from_model_options(self.options)
        return [self.model, *hooked, *self.model.get_nested_additional_models()]

    def load_late(self) -> None:
        """Loads the dispreferred model in the middle of a run that began without need of it (cfg 1 changed on the way)."""
        self.prepare()
        loaded = self.guider.loaded_models
        loaded.extend(self.models())
        memory = self.model.memory_required(self.inputs["noise"].shape)
        comfy.model_management.load_models_gpu([self.guider.model_patcher, *loaded], memory_required=memory)
        self.encode()

    def encode(self) -> None:
        """Encodes the conditioning with the dispreferred model and puts its negative, under new uuids, in the guider's place.

        Positive and negative go through together, since areas and ControlNets of the one are completed from the other.
        """
        model, guider = self.model.model, self.guider
        if hasattr(guider.inner_model, "latent_shapes"):
            model.latent_shapes = guider.inner_model.latent_shapes
        comfy.samplers.cast_to_load_options(self.options, device=self.model.load_device, dtype=self.model.model_dtype())
        self.model.pre_run()
        conds = comfy.samplers.process_conds(model, conds=dict(self.raw_conds), **self.inputs, **self.process_options)
        for entries in guider.conds.values():
            comfy.samplers.pre_run_control(guider.inner_model, entries)  # shared ControlNets: the preferred's run stands
        negative = [{**entry, "uuid": uuid.uuid4()} for entry in conds["negative"]]
        self.negative_uuids = frozenset(entry["uuid"] for entry in negative)
        guider.conds["negative"] = negative

    def is_negative(self, entries: list[dict] | None) -> bool:
        return bool(entries) and entries[0]["uuid"] in self.negative_uuids

    def predict(self, conds: list, x: Tensor, timestep: Tensor, model_options: dict) -> list[Tensor]:
        """The dispreferred model's predictions, under its own options and whatever this call changed in the run's."""
        later = later_options(model_options, self.started_with, leave_out=("multigpu_clones", "multigpu_thread_pool"))
        return comfy.samplers.calc_cond_batch(self.model.model, conds, x, timestep, merged_options(self.options, later))

    def close(self) -> None:
        """Undoes what the run did to the dispreferred model, however the run ended."""
        self.guider.model_options.pop(KEY, None)
        if self.model is None:
            return
        if self.model.model.current_patcher is self.model:  # ComfyUI cleans up loaded models only after a run that succeeded
            self.model.cleanup()
        comfy.samplers.cast_to_load_options(self.options, device=self.model.offload_device)
        self.model.restore_hook_patches()


def sampler_sample(executor, guider, sigmas, extra_args, callback, noise, latent_image=None, denoise_mask=None, *args, **kwargs):
    """SAMPLER_SAMPLE: models are loaded, the preferred's conditioning is encoded."""
    run = extra_args["model_options"].get(KEY)
    if run is not None:
        seed = extra_args.get("seed")
        run.inputs = dict(noise=noise, device=noise.device, latent_image=latent_image, denoise_mask=denoise_mask, seed=seed)
        if run.model is not None:
            run.encode()
    return executor(guider, sigmas, extra_args, callback, noise, latent_image, denoise_mask, *args, **kwargs)


def predict_noise(executor, x, timestep, model_options=None, seed=None):
    """PREDICT_NOISE: once for each evaluation of the guided model."""
    guider = executor.class_obj
    model_options = model_options or {}
    run = model_options.get(KEY)
    if run is None:
        return executor(x, timestep, model_options, seed)
    with _guidance(guider, neutral=not run.guides_at(timestep[0])):
        if run.model is None and run.needs_negative(model_options):
            run.load_late()
        return executor(x, timestep, model_options, seed)


def calc_cond_batch(executor, model, conds, x, timestep, model_options):
    """CALC_COND_BATCH: each list of entries goes to its model, and keeps its place in the list (patches read ``cond_or_uncond``)."""
    run = model_options.get(KEY)
    negative = [run is not None and run.is_negative(entries) for entries in conds]
    if not any(negative):
        return executor(model, conds, x, timestep, model_options)
    others = [None if n else entries for entries, n in zip(conds, negative, strict=True)]
    preferred = executor(model, others, x, timestep, model_options) if any(others) else others
    negatives = [entries if n else None for entries, n in zip(conds, negative, strict=True)]
    dispreferred = run.predict(negatives, x, timestep, model_options)
    # A place that is empty on both sides gets the dispreferred call's zeros, as it would from ComfyUI.
    return [p if entries else d for p, d, entries in zip(preferred, dispreferred, others, strict=True)]


@contextmanager
def _guidance(guider: comfy.samplers.CFGGuider, neutral: bool) -> Iterator[None]:
    """With ``neutral``, the guider's weights are those at which its negative pass has no effect."""
    saved = {name: getattr(guider, name) for name in NEUTRAL_GUIDANCE if neutral and hasattr(guider, name)}
    try:
        for name in saved:
            setattr(guider, name, NEUTRAL_GUIDANCE[name])
        yield
    finally:
        for name, value in saved.items():
            setattr(guider, name, value)


def _has_hooks(conds: dict[str, list[dict]]) -> bool:
    controls = [entry["control"] for entries in conds.values() for entry in entries if "control" in entry]
    return any("hooks" in entry for entries in conds.values() for entry in entries) or any(c.get_extra_hooks() for c in controls)


def _copy_hooks(conds: dict[str, list[dict]]) -> None:
    """Gives the entries hooks of their own: a keyframe reports each change once, and the preferred must hear of it too."""
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
