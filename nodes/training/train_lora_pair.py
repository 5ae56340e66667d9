"""CHATS Train LoRA Pair: rated pictures in, the two LoRAs of a pair on the connected MODEL out."""

from comfy.model_patcher import ModelPatcher
from comfy_api.latest import io

from ...chats.words import shown
from ..inputs import JSON_TYPES, advanced, require_conditioning, require_models
from ..loading.loaders import model_outputs


class CHATSTrainLoRAPair(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="CHATSTrainLoRAPair",
            display_name="CHATS Train LoRA Pair",
            category="training/CHATS",
            description="Trains the preferred and the dispreferred LoRA of a pair on the pictures that you rated, on "
            "whatever model is connected. Can be stopped at any time: queued again with equal settings it goes on.",
            is_output_node=True,
            inputs=[
                io.Model.Input("model", tooltip="The base to train on; it stays as it is."),
                io.Clip.Input("clip", tooltip="Encodes the prompts, once."),
                io.Vae.Input("vae", tooltip="Encodes the pictures, once."),
                io.String.Input(
                    "dataset", default="my taste", tooltip="The rated data set, as named in CHATS Save Candidates."
                ),
                io.String.Input(
                    "name",
                    default="my pair",
                    tooltip="Of the run and of the files in loras: <name>_preferred and <name>_dispreferred.",
                ),
                io.Conditioning.Input(
                    "null",
                    optional=True,
                    tooltip="The null prompt to train and to sample with; not connected, it is an empty prompt.",
                ),
                io.Int.Input(
                    "rank", default=16, min=1, max=512, tooltip="Rank of the LoRAs; more holds more, and takes memory."
                ),
                advanced(
                    io.Combo.Input(
                        "layers",
                        options=["attention", "all linear"],
                        default="attention",
                        tooltip="Which layers get LoRAs: those of attention, or every linear one.",
                    )
                ),
                io.Int.Input(
                    "steps",
                    default=500,
                    min=1,
                    max=1000000,
                    tooltip="Optimizer steps in all. More later makes a finished run go on.",
                ),
                io.Float.Input(
                    "learning_rate",
                    default=1e-4,
                    min=1e-8,
                    max=1.0,
                    step=1e-5,
                    round=False,
                    tooltip="Of AdamW, constant.",
                ),
                advanced(
                    io.Int.Input(
                        "accumulate", default=8, min=1, max=1024, tooltip="Pairs in a step; they take time, no memory."
                    )
                ),
                advanced(
                    io.Float.Input(
                        "beta",
                        default=1000.0,  # objective.DEFAULT_BETA, which is not loaded for a schema
                        min=0.001,
                        max=1000000.0,
                        step=1.0,
                        round=False,
                        tooltip="The paper's T: the higher, the sooner a pair that is told right counts no more.",
                    )
                ),
                advanced(
                    io.Float.Input(
                        "null_prompt_prob",
                        default=0.5,
                        min=0.0,
                        max=1.0,
                        step=0.05,
                        round=0.001,
                        tooltip="How often the dispreferred model sees the null prompt instead of the prompt.",
                    )
                ),
                io.Int.Input(
                    "resolution",
                    default=1024,
                    min=64,
                    max=4096,
                    step=64,
                    tooltip="Pictures are trained at about resolution × resolution pixels, in their own shape: the "
                    "base's, 512 for SD1.5.",
                ),
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=0xFFFFFFFFFFFFFFFF,
                    # Said, since the front end else draws a new one after each run: a run would never go on.
                    control_after_generate=False,
                    tooltip="Of all that is random in it; a run goes on with its own.",
                ),
                io.Int.Input(
                    "minutes",
                    default=0,
                    min=0,
                    max=100000,
                    tooltip="Stop after so many minutes and hand on the pair as it is; queue again to go on. 0: until "
                    "it is done.",
                ),
                io.Int.Input(
                    "preview_every",
                    optional=True,
                    default=0,
                    min=0,
                    max=1000000,
                    tooltip="After each so many steps a picture by the pair under way is shown on the node, and not "
                    "kept. It changes nothing in the training but its time. 0: none.",
                ),
            ],
            outputs=[
                *model_outputs(),
                io.Image.Output(display_name="curve", tooltip="The loss, and how often held-out pairs are told right."),
            ],
            hidden=[io.Hidden.unique_id, io.Hidden.prompt],
        )

    @classmethod
    def fingerprint_inputs(cls, dataset: str | None = None, name: str | None = None, **_: object) -> str:
        """Changes where ratings came in, the run went on or its files were moved: ComfyUI does not know of it."""
        from ...chats.taste.names import METADATA, RATINGS, TasteError
        from .requested_run import run_folder
        from .saved_run import FILE
        from .written_pair import member_paths

        if not isinstance(dataset, str) or not isinstance(name, str):
            return ""
        try:
            folder = run_folder(dataset, name)
        except TasteError:
            return ""
        rated = (folder.parents[1] / RATINGS, folder.parents[1] / METADATA)
        files = (*rated, folder / FILE, *member_paths(name))
        return " ".join(str(file.stat().st_mtime_ns) if file.is_file() else "-" for file in files)

    @classmethod
    def execute(
        cls,
        model: ModelPatcher,
        clip: object,
        vae: object,
        dataset: str,
        name: str,
        rank: int,
        layers: str,
        steps: int,
        learning_rate: float,
        accumulate: int,
        beta: float,
        null_prompt_prob: float,
        resolution: int,
        seed: int,
        minutes: int,
        preview_every: int = 0,
        null: list | None = None,
    ) -> io.NodeOutput:
        # Loaded when something is trained: ComfyUI's start does not wait for it.
        from ..rating.data_sets import plain_refusals
        from .base_file import base_file
        from .requested_run import Connected, train_pair
        from .session import Limits, Settings

        require_models(model=model)
        for what, value in (("clip", clip), ("vae", vae)):
            if isinstance(value, JSON_TYPES):
                raise ValueError(f"`{what}` is `{shown(value)}`, which is none; connect the output of a loader")
        if null is not None:
            require_conditioning(null=null)
        settings = Settings(rank, layers, learning_rate, accumulate, beta, null_prompt_prob, resolution, seed)
        graph, node_id = (cls.hidden.prompt, cls.hidden.unique_id) if cls.hidden else (None, None)
        connected = Connected(model, clip, vae, null, base_file(model, graph, node_id))
        limits = Limits(steps, 60.0 * minutes)
        with plain_refusals():
            trained = train_pair(connected, dataset, name, settings, limits, preview_every, node_id)
        return io.NodeOutput(*trained)


NODES = [CHATSTrainLoRAPair]
