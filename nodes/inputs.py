"""Inputs that several nodes share, so that a name, a range and a tooltip are written once."""

from comfy_api.latest import io

from ..chats import guidance
from ..chats.words import shown

# The types of a value in a graph's JSON. ComfyUI hands on such a value even where a link belongs.
JSON_TYPES = (str, int, float, bool, list, dict, type(None))


def require_models(**models: object) -> None:
    """Raises ValueError, naming the input, for a value in the place of a link to a model."""
    for name, value in models.items():
        if isinstance(value, JSON_TYPES):
            raise ValueError(f"`{name}` is `{shown(value)}`, which is no model; connect the output of a loader")


def require_conditioning(**conditionings: object) -> None:
    """Raises ValueError, naming the input, for a value in the place of a link to a conditioning."""
    for name, value in conditionings.items():
        if not isinstance(value, list) or not all(
            isinstance(entry, list | tuple) and len(entry) == 2 for entry in value
        ):
            raise ValueError(
                f"`{name}` is `{shown(value)}`, which is no conditioning; connect the output of a text encode node"
            )


def advanced(widget: io.WidgetInput) -> io.WidgetInput:
    """The widget, marked as one that newer front ends fold away. ComfyUI 0.3.64 has no constructor argument for it."""
    widget.extra_dict["advanced"] = True
    return widget


def model_inputs() -> list[io.Model.Input]:
    return [
        io.Model.Input("preferred", tooltip="The model trained on the images people chose; it runs the positive pass."),
        io.Model.Input(
            "dispreferred", tooltip="The model trained on the images people rejected; it runs the negative pass."
        ),
    ]


def null_input() -> io.Conditioning.Input:
    return io.Conditioning.Input(
        "null",
        tooltip="The null prompt that the pair was trained with: an empty prompt, or zeros (ConditioningZeroOut). The "
        "loader shows which.",
    )


def alpha_input() -> io.Float.Input:
    return io.Float.Input(
        "alpha",
        default=guidance.DEFAULT_ALPHA,
        min=-2.0,
        max=2.0,
        step=0.05,
        round=0.001,
        tooltip="Share of the dispreferred conditional (the paper's α). 0.5 to 0.7 works well, the paper's default is "
        "0.5. 0 is CFG with two models; below 0 pushes away from the prompt as the dispreferred model sees it.",
    )


def form_input() -> io.Combo.Input:
    return advanced(
        io.Combo.Input(
            "form",
            # `auto` is last: graphs that older versions saved hold the other two by their places.
            options=["proxy", "exact", "auto"],
            default="auto",
            tooltip="proxy (Eq. 17): one mixed prompt, two passes a step. exact (Eq. 16): prompt and null apart, three "
            "passes a step. auto: proxy where prompt and null can be mixed, else exact; the node shows which.",
        )
    )


def cfg_input() -> io.Float.Input:
    return io.Float.Input(
        "cfg",
        default=guidance.cfg_from_guidance_scale(guidance.DEFAULT_GUIDANCE_SCALE),
        min=0.0,
        max=100.0,
        step=0.1,
        round=0.01,
        tooltip="ComfyUI's cfg = 1 + s of the paper: its default s = 5 is cfg 6. At 1 only the preferred model runs.",
    )


def interval_inputs() -> list[io.Float.Input]:
    ends = {
        "start_percent": (
            0.0,
            "Share of the noise schedule from which the dispreferred model guides. Before it cfg is 1, at half the "
            "cost.",
        ),
        "end_percent": (
            1.0,
            "Share of the noise schedule up to which the dispreferred model guides. After it cfg is 1, at half the "
            "cost.",
        ),
    }
    return [
        advanced(io.Float.Input(name, default=default, min=0.0, max=1.0, step=0.01, round=0.001, tooltip=tooltip))
        for name, (default, tooltip) in ends.items()
    ]
