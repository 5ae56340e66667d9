"""The mechanism: one MODEL whose negative pass runs on a second model.

ComfyUI's sampling wrappers do it, so every sampler node works and no global is touched:

- OUTER_SAMPLE readies the dispreferred side for this run and lets the preferred's own load call bring it along;
- SAMPLER_SAMPLE puts its negative in place, once both are loaded;
- PREDICT_NOISE sets the guidance to neutral outside the interval, and loads a dispreferred side first needed late;
- CALC_COND_BATCH, with two loaded models, sends the negative's entries, known by their uuid, to the second one.

Two models are two sets of weights (``second_model``), or two versions of one (``shared_weights``).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import comfy.samplers
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import WrappersMP

from ..advice import advise_on_run
from .inheritance import Baseline
from .run import KEY, Run
from .shared_weights import SharedDifference, SharedWeightsRun
from .two_models import SecondModelRun, calc_cond_batch

# A guider's own weights of the negative pass, by attribute (CFGGuider and kin, DualCFGGuider, PerpNegGuider), at which
# it has no effect.
NEUTRAL_GUIDANCE = {"cfg": 1.0, "cfg2": 1.0, "neg_scale": 0.0}


def pair_models(
    preferred: ModelPatcher, dispreferred: ModelPatcher, start_percent: float, end_percent: float
) -> ModelPatcher:
    """A clone of ``preferred`` whose negative pass runs on ``dispreferred`` in every sampler.

    Args:
        preferred: the model of the positive pass; samplers see its noise schedule.
        dispreferred: the model of the negative pass, left as it is.
        start_percent: share of the schedule from which the dispreferred model guides; before it, cfg is 1.
        end_percent: share of the schedule up to which it guides; after it, cfg is 1.

    What wraps a whole run or guided step (caching nodes) can be there only once, on the model that is sampled.

    Raises:
        InexpressibleError: when both are versions of one loaded model and differ by more than plain LoRAs.
    """
    model = preferred.clone()
    pair = Pair(dispreferred, start_percent, end_percent)
    if preferred.is_clone(dispreferred):
        pair.shared = SharedDifference(preferred, dispreferred)
    else:
        _warn_of_unused_wrappers(dispreferred)
    for kind, wrapper in pair.wrappers().items():
        model.add_wrapper_with_key(kind, KEY, wrapper)
    pair.baseline = Baseline.of(model)
    return model


def is_paired(model: ModelPatcher) -> bool:
    """Whether the model already carries a pair."""
    return bool(model.get_wrappers(WrappersMP.OUTER_SAMPLE, KEY))


def _warn_of_unused_wrappers(dispreferred: ModelPatcher) -> None:
    for kind in (WrappersMP.OUTER_SAMPLE, WrappersMP.SAMPLER_SAMPLE, WrappersMP.PREDICT_NOISE):
        for name, wrappers in dispreferred.wrappers.get(kind, {}).items():
            if wrappers:
                logging.warning(
                    "CHATS: `%s` on the dispreferred model is not run there; put that node after CHATS Apply", name
                )


@dataclass
class Pair:
    """What stays the same from run to run: the dispreferred model, the interval, the preferred as it was when joined;
    and, where both are versions of one loaded model, their difference."""

    dispreferred: ModelPatcher
    start_percent: float
    end_percent: float
    shared: SharedDifference | None = None
    baseline: Baseline = field(init=False)

    def wrappers(self) -> dict[str, Callable]:
        wrappers = {
            WrappersMP.OUTER_SAMPLE: self.outer_sample,
            WrappersMP.SAMPLER_SAMPLE: sampler_sample,
            WrappersMP.PREDICT_NOISE: predict_noise,
        }
        return wrappers if self.shared else wrappers | {WrappersMP.CALC_COND_BATCH: calc_cond_batch}

    def outer_sample(self, executor, noise, latent_image, sampler, sigmas, *args, **kwargs):
        """OUTER_SAMPLE: around the whole run, before the models are loaded."""
        guider = executor.class_obj
        if not guider.conds.get("negative"):
            logging.warning(
                "CHATS: %s has no negative, so the dispreferred model is not used; use another guider",
                type(guider).__name__,
            )
            return executor(noise, latent_image, sampler, sigmas, *args, **kwargs)
        kind = SharedWeightsRun if self.shared else SecondModelRun
        run = kind(self, guider, {name: value for name, value in kwargs.items() if name == "latent_shapes"})
        advise_on_run(guider.model_patcher, getattr(guider, "cfg", None), guider.conds["negative"])
        try:
            if run.needs_negative(guider.model_options) and any(map(run.guides_at, sigmas[:-1].tolist())):
                # A conditioning entry may name models to be loaded with the main one: both come in one load call.
                first, *others = guider.conds["negative"]
                loaded_with = [*first.get("additional_models", []), *run.prepare()]
                guider.conds["negative"] = [{**first, "additional_models": loaded_with}, *others]
            return executor(noise, latent_image, sampler, sigmas, *args, **kwargs)
        finally:
            run.close()


def sampler_sample(
    executor, guider, sigmas, extra_args, callback, noise, latent_image=None, denoise_mask=None, *args, **kwargs
):
    """SAMPLER_SAMPLE: models are loaded, the preferred's conditioning is encoded."""
    run: Run | None = extra_args["model_options"].get(KEY)
    if run is not None:
        seed = extra_args.get("seed")
        run.inputs = dict(
            noise=noise, device=noise.device, latent_image=latent_image, denoise_mask=denoise_mask, seed=seed
        )
        if run.prepared:
            run.encode()
    return executor(guider, sigmas, extra_args, callback, noise, latent_image, denoise_mask, *args, **kwargs)


def predict_noise(executor, x, timestep, model_options=None, seed=None):
    """PREDICT_NOISE: once for each evaluation of the guided model."""
    guider = executor.class_obj
    model_options = model_options or {}
    run: Run | None = model_options.get(KEY)
    if run is None:
        return executor(x, timestep, model_options, seed)
    with _guidance(guider, neutral=not run.guides_at(timestep[0])):
        if not run.prepared and run.needs_negative(model_options):
            run.load_late()
        return executor(x, timestep, model_options, seed)


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
