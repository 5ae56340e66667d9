"""Two models joined into one MODEL, whose negative pass runs on the second: as two loaded models, or as two versions of
one."""

from __future__ import annotations

from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import WrappersMP

from .run import KEY, Interval
from .shared_weights import SharedWeights
from .two_models import TwoModels
from .wrappers import Pair


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
        ValueError: when both are versions of one loaded model and differ in nothing, or in more than plain LoRAs, or
            when one of two models has a node that looks for the other's pass.
    """
    interval = Interval(start_percent, end_percent)
    pair = (
        SharedWeights(preferred, dispreferred, interval)
        if preferred.is_clone(dispreferred)
        else TwoModels(preferred, dispreferred, interval)
    )
    return pair.join(preferred)


def is_paired(model: ModelPatcher) -> bool:
    """Whether the model already is a pair."""
    return pair_of(model) is not None


def pair_of(model: ModelPatcher) -> Pair | None:
    """The pair that a MODEL samples as; None where it is one model."""
    wrappers = model.get_wrappers(WrappersMP.OUTER_SAMPLE, KEY)
    return wrappers[0].__self__ if wrappers else None
