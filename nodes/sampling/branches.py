"""One call for the predictions of all branches, as each member of a pair makes them: together in one pass where it is
known whose rows are whose, else apart.

The negative's entries, known by their uuid, are the dispreferred model's.
"""

from __future__ import annotations

import itertools

from comfy.model_base import BaseModel
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import WrapperExecutor
from torch import Tensor

from .run import KEY, Conds, Run

# Patches that compare the two branches within a pass (normalized attention guidance), by the start of the function's
# qualified name: core's in the model options, KJNodes' in the place of a layer's forward.
COMPARES_BRANCHES = ("NAGuidance.", "WanCrossAttentionPatch.", "LTXVCrossAttentionPatch.")


class RegroupedError(RuntimeError):
    """A pass of both branches in which the rows of some layer are in an order of their own."""


def calc_cond_batch(
    executor: WrapperExecutor, model: BaseModel, conds: Conds, x: Tensor, timestep: Tensor, model_options: dict
) -> list[Tensor]:
    """CALC_COND_BATCH: each list of entries is predicted by its member, and keeps its place in the list (patches read
    ``cond_or_uncond``)."""
    run: Run | None = model_options.get(KEY)
    if run is None:
        return executor(model, conds, x, timestep, model_options)
    negative = [bool(entries and entries[0]["uuid"] in run.negative_uuids) for entries in conds]
    if not any(negative):
        return executor(model, conds, x, timestep, model_options)
    with run.call():
        whole = (
            compares_branches(model_options, run.guider.model_patcher),
            compares_branches(run.options_of_dispreferred(model_options), run.patcher_of_dispreferred()),
        )
        if not run.apart and not any(whole):
            try:
                return executor(model, conds, x, timestep, model_options)
            except RegroupedError:
                run.apart = True  # and this call is made anew
        others = [None if n else entries for entries, n in zip(conds, negative, strict=True)]
        negatives = [entries if n else None for entries, n in zip(conds, negative, strict=True)]
        preferred: list = others
        predictions = run.begin(executor, model, conds if whole[1] else negatives, x, timestep, model_options)
        if any(others):
            with run.member("preferred"):
                preferred = executor(model, conds if whole[0] else others, x, timestep, model_options)
        with run.member("dispreferred"):
            dispreferred = predictions()
    # A place that is empty on both sides gets the dispreferred call's zeros, as it would from ComfyUI.
    return [p if entries else d for p, d, entries in zip(preferred, dispreferred, others, strict=True)]


def compares_branches(model_options: dict, model: ModelPatcher) -> bool:
    """Whether a patch wants positive and negative rows in one pass: a member that has it runs all of the conditioning,
    and only its own part is kept."""
    patches = model_options.get("transformer_options", {}).get("patches", {})
    functions = itertools.chain(*patches.values(), model.object_patches.values())
    return any(getattr(function, "__qualname__", "").startswith(COMPARES_BRANCHES) for function in functions)
