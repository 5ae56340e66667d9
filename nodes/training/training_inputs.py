"""Inputs that the training nodes share, and their checks."""

from comfy_api.latest import io

from ...chats.words import shown
from ..inputs import JSON_TYPES, advanced, require_conditioning, require_models


def source_inputs(default_name: str, name_tooltip: str) -> list[io.Input]:
    """What is trained on, under which name, and the null prompt."""
    return [
        io.Clip.Input("clip", tooltip="Encodes the prompts, once."),
        io.Vae.Input("vae", tooltip="Encodes the pictures, once."),
        io.String.Input(
            "dataset", default="my taste", tooltip="The rated data set, as named in CHATS Save Candidates."
        ),
        io.String.Input("name", default=default_name, tooltip=name_tooltip),
        io.Conditioning.Input(
            "null",
            optional=True,
            tooltip="The null prompt to train and to sample with; not connected, it is an empty prompt.",
        ),
    ]


def rank_input(tooltip: str) -> io.Int.Input:
    return io.Int.Input("rank", default=16, min=1, max=512, tooltip=tooltip)


def layers_input(default: str, tooltip: str) -> io.Combo.Input:
    return advanced(io.Combo.Input("layers", options=["attention", "all linear"], default=default, tooltip=tooltip))


def steps_input(default: int, tooltip: str) -> io.Int.Input:
    return io.Int.Input("steps", default=default, min=1, max=1000000, tooltip=tooltip)


def learning_rate_input(default: float, tooltip: str) -> io.Float.Input:
    return io.Float.Input("learning_rate", default=default, min=1e-8, max=1.0, step=1e-5, round=False, tooltip=tooltip)


def accumulate_input(default: int) -> io.Int.Input:
    return advanced(
        io.Int.Input(
            "accumulate", default=default, min=1, max=1024, tooltip="Pairs in a step; they take time, no memory."
        )
    )


def resolution_input() -> io.Int.Input:
    return io.Int.Input(
        "resolution",
        default=1024,
        min=64,
        max=4096,
        step=64,
        tooltip="Pictures are trained at about resolution × resolution pixels, in their own shape: the base's, 512 for "
        "SD1.5.",
    )


def seed_input() -> io.Int.Input:
    return io.Int.Input(
        "seed",
        default=0,
        min=0,
        max=0xFFFFFFFFFFFFFFFF,
        # Said, since the front end else draws a new one after each run: a run would never go on.
        control_after_generate=False,
        tooltip="Of all that is random in it; a run goes on with its own.",
    )


def minutes_input(made: str) -> io.Int.Input:
    return io.Int.Input(
        "minutes",
        default=0,
        min=0,
        max=100000,
        tooltip=f"Stop after so many minutes and hand on the {made} as it is; queue again to go on. 0: until it is "
        "done.",
    )


def preview_input(made: str) -> io.Int.Input:
    return io.Int.Input(
        "preview_every",
        optional=True,
        default=0,
        min=0,
        max=1000000,
        tooltip=f"After each so many steps a picture by the {made} under way is shown on the node, and not kept. It "
        "changes nothing in the training but its time. 0: none.",
    )


def curve_output(tooltip: str) -> io.Image.Output:
    return io.Image.Output(display_name="curve", tooltip=tooltip)


def require_connected(model: object, clip: object, vae: object, null: object | None) -> None:
    """Raises ValueError, naming the input, for a value in the place of a link."""
    require_models(model=model)
    for what, value in (("clip", clip), ("vae", vae)):
        if isinstance(value, JSON_TYPES):
            raise ValueError(f"`{what}` is `{shown(value)}`, which is none; connect the output of a loader")
    if null is not None:
        require_conditioning(null=null)
