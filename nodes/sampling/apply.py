"""CHATS Apply: two models in, one MODEL out that samples with both in every sampler node."""

from comfy.model_patcher import ModelPatcher
from comfy_api.latest import io

from ..advice import ATTACHMENT, DISTILLED, OTHER_NEGATIVE, SAMPLING
from ..inputs import interval_inputs, model_inputs, require_models
from .compatibility import check_models, sampling_difference
from .pairing import pair_models
from .single_use import saying_what_is_lost

BASE_IS_BETTER = "the untouched base was measured as this pair's better negative: connect it to dispreferred, alpha 0"
DISPREFERRED_IS_BETTER = (
    "the dispreferred model was measured as this pair's better negative, but what is connected states no pair: connect "
    "the pair's own"
)


def apply_pair(
    preferred: ModelPatcher, dispreferred: ModelPatcher, start_percent: float, end_percent: float
) -> ModelPatcher:
    """The pair as one model, after the checks; see :func:`.pairing.pair_models`.

    Raises:
        ValueError: when the two cannot be sampled together, or the interval ends before it starts.
    """
    require_models(preferred=preferred, dispreferred=dispreferred)
    if start_percent > end_percent:
        raise ValueError(
            f"`start_percent` is {start_percent:g} and `end_percent` {end_percent:g}; "
            "the start must not be after the end"
        )
    check_models(preferred, dispreferred)
    joined = saying_what_is_lost(pair_models(preferred, dispreferred, start_percent, end_percent))
    lines = [line for model in (preferred, dispreferred) for line in model.attachments.get(DISTILLED, ())]
    if lines:
        joined.set_attachments(DISTILLED, tuple(lines))
    if line := sampling_difference(preferred, dispreferred):
        joined.set_attachments(SAMPLING, (preferred.get_model_object("model_sampling"), line))
    else:
        joined.remove_attachments(SAMPLING)
    # Only a trained member says what pair it is of; the base itself says nothing.
    pulling, pushing = (model.attachments.get(ATTACHMENT) for model in (preferred, dispreferred))
    if pushing is not None and pushing.negative == "base":
        joined.set_attachments(OTHER_NEGATIVE, BASE_IS_BETTER)
    elif pushing is None and pulling is not None and pulling.negative == "dispreferred":
        joined.set_attachments(OTHER_NEGATIVE, DISPREFERRED_IS_BETTER)
    return joined


class CHATSApply(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="CHATSApply",
            display_name="CHATS Apply",
            category="model_patches/CHATS",
            description="Joins a preferred and a dispreferred model into one MODEL. Whatever sampler it is connected "
            "to runs the positive pass on the preferred and the negative pass on the dispreferred model. LoRAs and "
            "patches added after this node act on both. Two LoRAs on one base share its weights, and both passes run "
            "as one batch.",
            inputs=[*model_inputs(), *interval_inputs()],
            outputs=[io.Model.Output(display_name="MODEL", tooltip="For any sampler node.")],
        )

    @classmethod
    def execute(
        cls, preferred: ModelPatcher, dispreferred: ModelPatcher, start_percent: float, end_percent: float
    ) -> io.NodeOutput:
        return io.NodeOutput(apply_pair(preferred, dispreferred, start_percent, end_percent))


NODES = [CHATSApply]
