"""How one MODEL samples as a pair: wrappers around ComfyUI's own steps of a run, which work in every sampler node and
touch no global.

- OUTER_SAMPLE starts a run of the pair's kind, and has the dispreferred side loaded in the preferred's own load call;
- SAMPLER_SAMPLE gives the guider the dispreferred side's negative, once both are loaded;
- PREDICT_NOISE sets the guidance to neutral outside the interval, and loads a dispreferred side that is needed late;
- CALC_COND_BATCH has each branch predicted by its member (``branches.py``).
"""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import comfy.samplers
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import WrapperExecutor, WrappersMP
from torch import Tensor

from ..advice import advise_on_run
from .branches import calc_cond_batch
from .inheritance import Baseline
from .run import KEY, Interval, Run

# A guider's own weights of the negative pass, by attribute (CFGGuider and kin, DualCFGGuider, PerpNegGuider), each with
# the value at which that pass has no effect.
NEUTRAL_GUIDANCE = {"cfg": 1.0, "cfg2": 1.0, "neg_scale": 0.0}


class Pair(ABC):
    """What stays the same from run to run of a pair; each kind of pair has its own kind of run.

    Args:
        dispreferred: the model of the negative pass.
        interval: where it guides.
    """

    baseline: Baseline  # the preferred as it was when joined

    def __init__(self, dispreferred: ModelPatcher, interval: Interval):
        self.dispreferred, self.interval = dispreferred, interval

    def sentences(self, model: ModelPatcher) -> list[str]:
        """On what other nodes put on the two does not do; ``model`` is the pair's, as it is sampled."""
        return []

    @abstractmethod
    def start(self, guider: comfy.samplers.CFGGuider) -> Run:
        """A new run of this pair."""

    def wrappers(self) -> dict[str, Callable]:
        return {
            WrappersMP.OUTER_SAMPLE: self.outer_sample,
            WrappersMP.SAMPLER_SAMPLE: sampler_sample,
            WrappersMP.PREDICT_NOISE: predict_noise,
            WrappersMP.CALC_COND_BATCH: calc_cond_batch,
        }

    def join(self, preferred: ModelPatcher) -> ModelPatcher:
        """A clone of ``preferred`` that samples as this pair."""
        model = preferred.clone()
        for kind, wrapper in self.wrappers().items():
            model.add_wrapper_with_key(kind, KEY, wrapper)
        self.baseline = Baseline.of(model)
        return model

    def outer_sample(
        self,
        executor: WrapperExecutor,
        noise: Tensor,
        latent_image: Tensor,
        sampler: comfy.samplers.Sampler,
        sigmas: Tensor,
        *args: object,
        **kwargs: object,
    ) -> Tensor:
        """OUTER_SAMPLE: around the whole run, before the models are loaded."""
        guider = executor.class_obj
        if not guider.conds.get("negative"):
            logging.warning(
                "CHATS: %s has no negative, so the dispreferred model is not used; use another guider",
                type(guider).__name__,
            )
            return executor(noise, latent_image, sampler, sigmas, *args, **kwargs)
        run = self.start(guider)
        if "latent_shapes" in kwargs:  # unknown to ComfyUI 0.3.64
            run.inputs["latent_shapes"] = kwargs["latent_shapes"]
        model = guider.model_patcher
        advise_on_run(model, getattr(guider, "cfg", None), guider.conds["negative"], self.sentences(model))
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
    executor: WrapperExecutor,
    guider: comfy.samplers.CFGGuider,
    sigmas: Tensor,
    extra_args: dict,
    callback: Callable | None,
    noise: Tensor,
    latent_image: Tensor | None = None,
    denoise_mask: Tensor | None = None,
    *args: object,
    **kwargs: object,
) -> Tensor:
    """SAMPLER_SAMPLE: models are loaded, the preferred's conditioning is encoded."""
    run: Run | None = extra_args["model_options"].get(KEY)
    if run is not None:
        seed = extra_args.get("seed")
        run.inputs.update(
            noise=noise, device=noise.device, latent_image=latent_image, denoise_mask=denoise_mask, seed=seed
        )
        if run.prepared:
            run.encode()
    return executor(guider, sigmas, extra_args, callback, noise, latent_image, denoise_mask, *args, **kwargs)


def predict_noise(
    executor: WrapperExecutor,
    x: Tensor,
    timestep: Tensor,
    model_options: dict | None = None,
    seed: int | None = None,
) -> Tensor:
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
