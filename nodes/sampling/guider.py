"""CHATS Guider: CHATS Apply and a guider in one box, for SamplerCustomAdvanced."""

import comfy.samplers
from comfy.model_patcher import ModelPatcher
from comfy_api.latest import io

from ..inputs import cfg_input, interval_inputs, model_inputs, require_conditioning
from .apply import apply_pair


class CHATSGuider(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="CHATSGuider",
            display_name="CHATS Guider",
            category="sampling/custom_sampling/guiders",
            description="Guides SamplerCustomAdvanced with a preferred and a dispreferred model. The negative is a "
            "CHATS Proxy Prompt.",
            inputs=[
                *model_inputs(),
                io.Conditioning.Input("positive", tooltip="The prompt, for the preferred model."),
                io.Conditioning.Input(
                    "negative", tooltip="The output of CHATS Proxy Prompt, for the dispreferred model."
                ),
                cfg_input(),
                *interval_inputs(),
            ],
            outputs=[io.Guider.Output(display_name="GUIDER", tooltip="For SamplerCustomAdvanced.")],
        )

    @classmethod
    def execute(
        cls,
        preferred: ModelPatcher,
        dispreferred: ModelPatcher,
        positive: list,
        negative: list,
        cfg: float,
        start_percent: float,
        end_percent: float,
    ) -> io.NodeOutput:
        require_conditioning(positive=positive, negative=negative)
        guider = comfy.samplers.CFGGuider(apply_pair(preferred, dispreferred, start_percent, end_percent))
        guider.set_conds(positive, negative)
        guider.set_cfg(cfg)
        return io.NodeOutput(guider)


NODES = [CHATSGuider]
