"""CHATS KSampler: proxy prompt, apply and ComfyUI's KSampler in one box."""

import comfy.samplers
import nodes as comfy_nodes
from comfy.model_patcher import ModelPatcher
from comfy_api.latest import io

from ...chats.words import shown
from ..inputs import alpha_input, cfg_input, form_input, interval_inputs, model_inputs, null_input
from .apply import apply_pair
from .null_text import null_text
from .proxy_prompt import build_negative


class CHATSKSampler(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="CHATSKSampler",
            display_name="CHATS KSampler",
            category="sampling",
            description="KSampler with a preferred and a dispreferred model: CHATS Proxy Prompt, CHATS Apply and "
            "KSampler in one.",
            inputs=[
                *model_inputs(),
                io.Conditioning.Input("positive", tooltip="The prompt."),
                null_input(),
                io.Latent.Input("latent_image", tooltip="The latent to denoise."),
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=0xFFFFFFFFFFFFFFFF,
                    control_after_generate=True,
                    tooltip="The random seed of the noise.",
                ),
                io.Int.Input(
                    "steps", default=30, min=1, max=10000, tooltip="Number of denoising steps; the paper uses 50."
                ),
                cfg_input(),
                io.Combo.Input(
                    "sampler_name", options=comfy.samplers.KSampler.SAMPLERS, tooltip="The sampling algorithm."
                ),
                io.Combo.Input(
                    "scheduler", options=comfy.samplers.KSampler.SCHEDULERS, tooltip="How the noise levels are spaced."
                ),
                io.Float.Input(
                    "denoise",
                    default=1.0,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    tooltip="Share of the noise: 1 for a new image, less to keep part of the latent's image.",
                ),
                alpha_input(),
                form_input(),
                *interval_inputs(),
            ],
            outputs=[io.Latent.Output(display_name="LATENT", tooltip="The denoised latent.")],
            hidden=[io.Hidden.prompt, io.Hidden.unique_id],
        )

    @classmethod
    def execute(
        cls,
        preferred: ModelPatcher,
        dispreferred: ModelPatcher,
        positive: list,
        null: list,
        latent_image: dict,
        seed: int,
        steps: int,
        cfg: float,
        sampler_name: str,
        scheduler: str,
        denoise: float,
        alpha: float,
        form: str,
        start_percent: float,
        end_percent: float,
    ) -> io.NodeOutput:
        if not isinstance(latent_image, dict) or "samples" not in latent_image:
            raise ValueError(
                f"`latent_image` is `{shown(latent_image)}`, which is no latent; connect the output of Empty Latent "
                "Image"
            )
        model = apply_pair(preferred, dispreferred, start_percent, end_percent)
        negative = build_negative(positive, null, alpha, form, null_text(cls.hidden))
        return io.NodeOutput(
            *comfy_nodes.common_ksampler(
                model, seed, steps, cfg, sampler_name, scheduler, positive, negative, latent_image, denoise
            )
        )


NODES = [CHATSKSampler]
