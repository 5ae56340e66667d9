"""The proxy prompt as conditioning: what the dispreferred model is fed (Eq. 16 and 17).

A ComfyUI conditioning is a list of entries ``[token embeddings, options]``. The negative made here has, for every
positive entry, either one entry of mixed embeddings (``proxy``) or two entries whose strengths are −α and 1+α
(``exact``): ComfyUI divides the weighted predictions by the sum of the strengths, which is 1.
"""

import logging

import torch
from comfy_api.latest import io

from ...chats import guidance
from ..advice import PROXY, ProxyFacts, executing_node, show_lines
from ..inputs import alpha_input, form_input, null_input, require_conditioning
from .null_text import null_text

# Options of an entry that come out of the text encoders, as opposed to where, when and how the entry is applied.
TEXT_OPTIONS = frozenset(
    {
        "pooled_output",
        "t5xxl_ids",
        "t5xxl_weights",
        "text_input_ids",
        "unprocessed_ltxav_embeds",
        "audio_codes",
        "minimax_token_tags",
    }
)
TEXT_OPTION_PREFIXES = ("attention_mask", "conditioning_", "text_embedding_mask")


class NoMixture(ValueError):
    """A prompt and a null prompt that cannot be mixed, but can be weighed apart.

    Args:
        sentence: with the way out, for people.
        reason: in a few words, for a line on a node.
    """

    def __init__(self, sentence: str, reason: str):
        super().__init__(sentence)
        self.reason = reason


def build_negative(positive: list, null: list, alpha: float, form: str, text: str | None = None) -> list:
    """The negative conditioning of CHATS from the positive and the null prompt.

    Args:
        positive: conditioning of the prompt; areas, masks, ranges, ControlNets and sizes of each entry stay.
        null: conditioning of the null prompt; by index where it has as many entries as ``positive``, else its first.
        alpha: share of the dispreferred conditional; 0 gives ``null`` as it is.
        form: ``proxy`` (Eq. 17), ``exact`` (Eq. 16), or ``auto``: proxy where all entries can be mixed, else exact for
            all, so that the regions of one picture are guided alike.
        text: of the null prompt, where it is known; see :mod:`.null_text`.

    Raises:
        ValueError: when the two cannot be combined; the message names the way out.
    """
    require_conditioning(positive=positive, null=null)
    if not positive or not null:
        raise ValueError(
            f"`{'null' if positive else 'positive'}` is an empty conditioning; connect the output of a text encode node"
        )
    if form != AUTO and form not in FORMS:
        raise ValueError(f"`form` is {form!r}; choose `auto`, `proxy` (two passes) or `exact` (three passes)")
    facts = ProxyFacts(
        alpha,
        form,
        null_is_zeros=not any(bool(tokens.any()) for tokens, _ in null),
        null_text=text,
        node_id=executing_node(),
    )
    if alpha == 0:
        return [[tokens, {**options, PROXY: facts}] for tokens, options in null]
    if len(null) not in (1, len(positive)):
        logging.warning(
            "CHATS: `null` has %d entries and `positive` %d; the first null entry is used for all of them",
            len(null),
            len(positive),
        )
    nulls = null if len(null) == len(positive) else null[:1] * len(positive)
    pairs = list(zip(positive, nulls, strict=True))
    if form == AUTO:
        entries, used, line = _automatic_entries(pairs, alpha)
        facts = facts._replace(form=used, line=line)
    else:
        entries = _entries(pairs, alpha, form)
    return [[tokens, {**options, PROXY: facts}] for tokens, options in entries]


def _automatic_entries(pairs: list[tuple[list, list]], alpha: float) -> tuple[list, str, str]:
    """The entries in the proxy form where that is possible, else in the exact one; which it is, and a line that says
    why."""
    try:
        return _entries(pairs, alpha, "proxy"), "proxy", "auto: proxy, two passes"
    except NoMixture as error:
        if any("default" in options for (_, options), _ in pairs):
            raise ValueError(
                f"prompt and null have no mixture ({error.reason}), and the exact form cannot weigh a `default` "
                "conditioning entry; give that entry an area or a mask"
            ) from error
        return _entries(pairs, alpha, "exact"), "exact", f"auto: exact, three passes ({error.reason})"


def _entries(pairs: list[tuple[list, list]], alpha: float, form: str) -> list:
    return [entry for pair in pairs for entry in FORMS[form](*pair, alpha)]


def _proxy_entries(positive: list, null: list, alpha: float) -> list:
    """Eq. 17: one entry, its token embeddings and pooled embedding mixed."""
    (tokens, options), (null_tokens, null_options) = positive, null
    shapes = f"the prompt's embedding is {list(tokens.shape)} and the null prompt's {list(null_tokens.shape)}"
    if tokens.shape[-1] != null_tokens.shape[-1]:
        raise ValueError(f"{shapes}, which are of two widths; encode both with the same text encoder")
    aligned = guidance.align_null(tokens, null_tokens) if tokens.ndim == null_tokens.ndim == 3 else None
    if aligned is None:
        raise NoMixture(
            f"{shapes}, which no exact repetition makes alike; set `form` to `exact`, or encode both with the same "
            "text encoder at the same length",
            f"{tokens.shape[1]} and {null_tokens.shape[1]} tokens",
        )
    mixed = {"pooled_output": _mixed_pooled(options.get("pooled_output"), null_options.get("pooled_output"), alpha)}
    for name in sorted(filter(_is_text, {**options, **null_options})):
        if name != "pooled_output" and not _same(options.get(name), null_options.get(name)):
            raise NoMixture(
                f"the prompt and the null prompt differ in `{name}`, which has no mixture; set `form` to `exact`",
                f"`{name}` differs",
            )
    return [
        [
            guidance.proxy_prompt(tokens, aligned, alpha),
            {**options, **{k: v for k, v in mixed.items() if v is not None}},
        ]
    ]


def _exact_entries(positive: list, null: list, alpha: float) -> list:
    """Eq. 16: the prompt and the null prompt as two entries with the strengths −α and 1+α; an entry of strength zero is
    left out."""
    (tokens, options), (null_tokens, null_options) = positive, null
    if "default" in options:
        raise ValueError(
            "the exact form cannot weigh a `default` conditioning entry; set `form` to `proxy`, or give that entry an "
            "area or a mask"
        )
    placement = {name: value for name, value in options.items() if not _is_text(name)}
    null_text = {name: value for name, value in null_options.items() if _is_text(name)}
    strength = options.get("strength", 1.0)
    prompt_weight, null_weight = guidance.negative_weights(alpha)
    entries = [
        [tokens, {**options, "strength": prompt_weight * strength}],
        [null_tokens, {**placement, **null_text, "strength": null_weight * strength}],
    ]
    return [entry for entry, weight in zip(entries, (prompt_weight, null_weight), strict=True) if weight != 0]


def _mixed_pooled(pooled: torch.Tensor | None, null_pooled: torch.Tensor | None, alpha: float) -> torch.Tensor | None:
    if pooled is None and null_pooled is None:
        return None
    if pooled is None or null_pooled is None:
        lacking = "positive" if pooled is None else "null"
        raise ValueError(
            f"`{lacking}` has no pooled embedding, the other has; encode both with the same text encoder node"
        )
    if pooled.shape[1:] != null_pooled.shape[1:]:
        raise ValueError(
            f"the pooled embeddings are {list(pooled.shape)} (positive) and {list(null_pooled.shape)} (null); "
            "encode both with the same text encoder"
        )
    return guidance.proxy_prompt(pooled, null_pooled, alpha)


def _is_text(name: str) -> bool:
    return name in TEXT_OPTIONS or name.startswith(TEXT_OPTION_PREFIXES)


def _same(one: object, other: object) -> bool:
    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        return one.shape == other.shape and torch.equal(one, other.to(one.device))
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(_same, one, other))
    return not isinstance(one, torch.Tensor) and not isinstance(other, torch.Tensor) and one == other


FORMS = {"proxy": _proxy_entries, "exact": _exact_entries}
AUTO = "auto"


class CHATSProxyPrompt(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="CHATSProxyPrompt",
            display_name="CHATS Proxy Prompt",
            category="conditioning/CHATS",
            description="Mixes the prompt and the null prompt into the negative that the dispreferred model is fed: "
            "−α · prompt + (1+α) · null. Connect it to the negative input of any sampler.",
            inputs=[
                io.Conditioning.Input(
                    "positive", tooltip="The prompt, as the sampler gets it; areas, masks and ControlNets carry over."
                ),
                null_input(),
                alpha_input(),
                form_input(),
            ],
            outputs=[
                io.Conditioning.Output(
                    display_name="negative", tooltip="For the negative input of a sampler or guider."
                )
            ],
            hidden=[io.Hidden.prompt, io.Hidden.unique_id],
        )

    @classmethod
    def execute(cls, positive: list, null: list, alpha: float, form: str) -> io.NodeOutput:
        negative = build_negative(positive, null, alpha, form, null_text(cls.hidden))
        line = negative[0][1][PROXY].line
        show_lines([line] if line else [])
        return io.NodeOutput(negative)


NODES = [CHATSProxyPrompt]
