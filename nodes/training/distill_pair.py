"""CHATS Distill Pair: a pair with its guidance in, one ordinary LoRA for cfg 1 out."""

from comfy.model_patcher import ModelPatcher
from comfy_api.latest import io

from ..inputs import alpha_input, cfg_input, form_input
from . import training_inputs


class CHATSDistillPair(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="CHATSDistillPair",
            display_name="CHATS Distill Pair",
            category="training/CHATS",
            description="Trains ONE ordinary LoRA that gives at cfg 1 what the pair gives with its guidance: half of "
            "CFG's time, in every program that loads LoRAs. cfg and negative prompts then have no effect. Can be "
            "stopped at any time: queued again with equal settings it goes on.",
            is_output_node=True,
            inputs=[
                io.Model.Input("model", tooltip="The pair: the MODEL of CHATS Apply; its interval is learned too."),
                *training_inputs.source_inputs("my pair distilled", "Of the run and of the file in loras."),
                cfg_input(),
                alpha_input(),
                form_input(),
                training_inputs.rank_input(
                    "Rank of the LoRA; that of the pair's or more begins as the preferred member."
                ),
                training_inputs.layers_input(
                    "all linear", "Which layers get the LoRA: every linear one, or those of attention."
                ),
                training_inputs.steps_input(160, "Optimizer steps; the learning rate falls to zero over them."),
                training_inputs.learning_rate_input(2e-3, "Of AdamW, at the first step."),
                training_inputs.accumulate_input(16),
                training_inputs.resolution_input(),
                training_inputs.seed_input(),
                training_inputs.minutes_input("LoRA"),
                training_inputs.preview_input("LoRA"),
            ],
            outputs=[
                io.Model.Output(
                    display_name="MODEL", tooltip="The pair's base with the LoRA on it: sample it at cfg 1."
                ),
                training_inputs.curve_output("The loss, and how much of the guidance is learned on held-out pictures."),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def fingerprint_inputs(cls, dataset: str | None = None, name: str | None = None, **_: object) -> str:
        """Changes where ratings came in, the run went on or its file was moved: ComfyUI does not know of it."""
        from .requested_distillation import DISTILLED_RUNS
        from .requested_run import changes
        from .written_distilled import lora_path

        return changes(dataset, name, DISTILLED_RUNS, lambda known: [lora_path(known)])

    @classmethod
    def execute(
        cls,
        model: ModelPatcher,
        clip: object,
        vae: object,
        dataset: str,
        name: str,
        cfg: float,
        alpha: float,
        form: str,
        rank: int,
        layers: str,
        steps: int,
        learning_rate: float,
        accumulate: int,
        resolution: int,
        seed: int,
        minutes: int,
        preview_every: int = 0,
        null: list | None = None,
    ) -> io.NodeOutput:
        # Loaded when something is trained: ComfyUI's start does not wait for it.
        from ..rating.data_sets import plain_refusals
        from .requested_distillation import distill_pair
        from .requested_run import Connected
        from .taught import DistillSettings

        training_inputs.require_connected(model, clip, vae, null)
        settings = DistillSettings(rank, layers, steps, learning_rate, accumulate, resolution, seed, cfg, alpha, form)
        node_id = cls.hidden.unique_id if cls.hidden else None
        connected = Connected(model, clip, vae, null)
        with plain_refusals():
            distilled = distill_pair(connected, dataset, name, settings, 60.0 * minutes, preview_every, node_id)
        return io.NodeOutput(*distilled)


NODES = [CHATSDistillPair]
