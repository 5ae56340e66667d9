"""CHATS Train LoRA Pair: rated pictures in, the two LoRAs of a pair on the connected MODEL out."""

from comfy.model_patcher import ModelPatcher
from comfy_api.latest import io

from ..inputs import advanced
from ..loading.loaders import model_outputs
from . import training_inputs


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
                *training_inputs.source_inputs(
                    "my pair", "Of the run and of the files in loras: <name>_preferred and <name>_dispreferred."
                ),
                training_inputs.rank_input("Rank of the LoRAs; more holds more, and takes memory."),
                training_inputs.layers_input(
                    "attention", "Which layers get LoRAs: those of attention, or every linear one."
                ),
                training_inputs.steps_input(500, "Optimizer steps in all. More later makes a finished run go on."),
                training_inputs.learning_rate_input(1e-4, "Of AdamW, constant."),
                training_inputs.accumulate_input(8),
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
                training_inputs.resolution_input(),
                training_inputs.seed_input(),
                training_inputs.minutes_input("pair"),
                training_inputs.preview_input("pair"),
            ],
            outputs=[
                *model_outputs(),
                training_inputs.curve_output("The loss, and how often held-out pairs are told right."),
            ],
            hidden=[io.Hidden.unique_id, io.Hidden.prompt],
        )

    @classmethod
    def fingerprint_inputs(cls, dataset: str | None = None, name: str | None = None, **_: object) -> str:
        """Changes where ratings came in, the run went on or its files were moved: ComfyUI does not know of it."""
        from .requested_run import RUNS, changes
        from .written_pair import member_paths

        return changes(dataset, name, RUNS, member_paths)

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
        from .requested_pair import train_pair
        from .requested_run import Connected
        from .session import Limits, Settings

        training_inputs.require_connected(model, clip, vae, null)
        settings = Settings(rank, layers, learning_rate, accumulate, beta, null_prompt_prob, resolution, seed)
        graph, node_id = (cls.hidden.prompt, cls.hidden.unique_id) if cls.hidden else (None, None)
        connected = Connected(model, clip, vae, null, base_file(model, graph, node_id))
        limits = Limits(steps, 60.0 * minutes)
        with plain_refusals():
            trained = train_pair(connected, dataset, name, settings, limits, preview_every, node_id)
        return io.NodeOutput(*trained)


NODES = [CHATSTrainLoRAPair]
