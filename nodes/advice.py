"""Warnings on a sampler: each setting of a run that contradicts the pair, or another setting, gets a line on its node.

Nothing is refused. Lines are short: the front end shows some 34 characters a row, and as many rows as the node has
room for.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import NamedTuple

from comfy.model_patcher import ModelPatcher
from comfy_execution.utils import get_executing_context
from server import PromptServer

from ..chats import guidance, pair, probe
from ..chats.words import shown

# The attachment of a MODEL that holds its pair's metadata, as the loaders read it; clones keep it.
ATTACHMENT = "chats_pair"
# The attachment of a pair's MODEL whose members are sampled differently: the preferred's model sampling, and a line.
SAMPLING = "chats_sampling"
# The attachment of a MODEL that was loaded as a member from a file that was distilled from a pair, and of the pair that
# it is in: the lines on that.
DISTILLED = "chats_distilled"
# The attachment of a pair's MODEL whose metadata recommend another negative than the one it has.
OTHER_NEGATIVE = "chats_other_negative"
# The option of a conditioning entry that holds the ProxyFacts it was made with.
PROXY = "chats_proxy"
# ComfyUI's classes that interpret a network's output, each with the metadata's word for that kind of prediction.
PREDICTIONS = (("V_PREDICTION", "v_prediction"), ("EPS", "epsilon"), ("CONST", "flow"))
# The node that makes ComfyUI take a model's output for one kind of prediction.
SAMPLING_NODES = {
    "epsilon": "ModelSamplingDiscrete",
    "v_prediction": "ModelSamplingDiscrete",
    "flow": "ModelSamplingSD3",
}
# The paper recommends 0.5 to 0.7; 0 is CFG with two models, and up to 1 it takes in part of the dispreferred
# conditional.
USUAL_ALPHAS = (0.0, 1.0)
# How many characters of a null prompt's text are shown.
LONGEST_TEXT = 30

# By a node's id: the execution that last showed lines there, and the lines. They stay until others replace them.
_shown: dict[str, tuple[str, list[str]]] = {}


class ProxyFacts(NamedTuple):
    """The settings that a negative was made with, whether its null prompt is zeros, its text where the graph states it,
    and a line on how it was made.

    ``form`` is the one that was used, where the setting leaves it open. The line stands on the node with ``node_id``,
    which made the negative; where that node samples too, above the lines on its run.
    """

    alpha: float
    form: str
    null_is_zeros: bool
    line: str | None = None
    node_id: str | None = None
    null_text: str | None = None


def show(text: str, node_id: str | None) -> None:
    """Shows a text on a node, where there is a server."""
    server = getattr(PromptServer, "instance", None)
    if server is not None and node_id is not None:
        server.send_progress_text(text, node_id)


def executing_node() -> str | None:
    """The id of the node that executes; None outside of a server."""
    context = get_executing_context()
    return context.node_id if context else None


def show_lines(lines: list[str]) -> bool:
    """Shows lines on the node that executes, in place of those of earlier executions; False where there is nothing new
    in this one."""
    context = get_executing_context()
    if context is None:
        return True
    execution, shown_before = _shown.get(context.node_id, (None, []))
    if execution == context.prompt_id and (not lines or lines == shown_before):
        return False
    _shown[context.node_id] = (context.prompt_id, lines)
    if lines or shown_before:
        show("\n".join(lines), context.node_id)
    return True


def prediction_of(model: ModelPatcher) -> str | None:
    """The kind of prediction that ComfyUI takes the model's output for, in the metadata's words."""
    bases = {base.__name__ for base in type(model.get_model_object("model_sampling")).__mro__}
    return next((words for name, words in PREDICTIONS if name in bases), None)


def prediction_advice(metadata: pair.PairMetadata | None, model: ModelPatcher) -> str | None:
    """A line where ComfyUI takes the model for another kind of prediction than the pair was trained for."""
    trained_for, taken_for = metadata.prediction_type if metadata else None, prediction_of(model)
    if trained_for is None or taken_for is None or trained_for == taken_for:
        return None
    node = SAMPLING_NODES[trained_for]
    return f"sampled as {taken_for}, but the pair was trained for {trained_for}: put {node} on both models"


def advise_on_run(
    model: ModelPatcher, cfg: float | None, negative: Iterable[dict], further: Iterable[str] = ()
) -> None:
    """Shows and logs the lines on a run. A node that samples several times in one execution, as for tiles, says the
    same once.

    Args:
        model: the pair's MODEL.
        cfg: the guider's; None where it has none.
        negative: the conditioning entries of the negative.
        further: lines on what other nodes do to the pair.
    """
    metadata = model.attachments.get(ATTACHMENT)
    facts = dict.fromkeys(entry[PROXY] for entry in negative if PROXY in entry)
    lines = [prediction_advice(metadata, model), sampling_advice(model), cfg_advice(metadata, cfg)]
    lines.append(model.attachments.get(OTHER_NEGATIVE))
    lines += [line for each in facts for line in proxy_advice(metadata, each)]
    lines += model.attachments.get(DISTILLED, ())
    found = [line for line in [*lines, *further] if line]
    here = executing_node()
    notes = [each.line for each in facts if each.line and each.node_id == here]
    if show_lines([*notes, *(f"⚠ {line}" for line in found)]):
        for line in found:
            logging.warning("CHATS: %s", line)


def sampling_advice(model: ModelPatcher) -> str | None:
    """A line where the two members are sampled differently. A model sampling node after CHATS Apply is for both and
    ends that."""
    sampling, line = model.attachments.get(SAMPLING, (None, None))
    return line if model.get_model_object("model_sampling") is sampling else None


def cfg_advice(metadata: pair.PairMetadata | None, cfg: float | None) -> str | None:
    """A line where cfg is below 1."""
    if cfg is None or cfg >= 1:
        return None
    stated = metadata.guidance_scale if metadata else None
    scale = guidance.DEFAULT_GUIDANCE_SCALE if stated is None else stated
    usual = guidance.cfg_from_guidance_scale(scale)
    return f"cfg {cfg:g} is below 1, where the dispreferred model pulls: try {usual:g}"


def proxy_advice(metadata: pair.PairMetadata | None, facts: ProxyFacts) -> list[str]:
    """Lines about the proxy prompt that a negative was made of."""
    lines = []
    low, high = USUAL_ALPHAS
    if not low <= facts.alpha <= high:
        lines.append(f"alpha {facts.alpha:g} is outside {low:g} to {high:g}: try 0.5 to 0.7")
    if metadata is None:
        return lines
    if metadata.null_prompt == "zeros" and not facts.null_is_zeros:
        lines.append("null is text, but the pair was trained with zeros: put ConditioningZeroOut in between")
    if metadata.null_prompt == "encoded_empty" and facts.null_is_zeros:
        lines.append(
            "null is zeros, but the pair was trained with an empty prompt: connect CLIPTextEncode without text"
        )
    elif metadata.null_prompt == "encoded_empty" and facts.null_text and facts.null_text.strip():
        lines.append(
            f"null is “{shown(facts.null_text, LONGEST_TEXT)}”, but the pair was trained with an empty prompt: remove "
            "the text"
        )
    cosine, error = metadata.proxy_cosine, metadata.proxy_relative_error
    if (
        facts.form == "proxy"
        and facts.alpha != 0
        and cosine is not None
        and error is not None
        and not probe.proxy_goes_the_way(cosine, error)
    ):
        lines.append(
            f"form proxy is unlike exact in this pair (cosine {cosine:.2f}, relative error {error:.2f}): compare both"
        )
    return lines
