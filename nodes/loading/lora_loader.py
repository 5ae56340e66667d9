"""Load CHATS LoRA Pair: a LoRA for each side on one base, two MODELs that share its weights."""

import re
from collections.abc import Iterable
from pathlib import Path

import comfy.lora
import comfy.lora_convert
import comfy.utils
from comfy.model_patcher import ModelPatcher
from comfy_api.latest import io

from ...chats import pair
from ..advice import ATTACHMENT
from ..inputs import require_models
from .loaders import (
    NONE,
    check_pair,
    loading,
    model_outputs,
    pair_paths,
    safetensors_files,
    show_pair,
    validate_pair,
    with_metadata,
)

FOLDER = "loras"
# What follows the member in the names of the file inputs.
SUFFIX = "_lora"
# How the keys of LoRAs for text encoders begin, in the formats that ComfyUI reads (`comfy.lora.model_lora_keys_clip`).
TEXT_ENCODER_KEYS = (
    "lora_te",
    "lora_prior_te_",
    "text_encoder",
    "text_model.",
    "base_model.model.text_model.",
    "te1.",
    "te2.",
)
# Where the name of a weight ends in a key of a LoRA.
KEY_ENDS = re.compile(r"[._]lora[._]|\.(?:hada|lokr|oft)_|\.(?:alpha|dora_scale|diff|diff_b)$")


def with_lora(model: ModelPatcher, path: str | None, strength: float) -> tuple[ModelPatcher, list[str]]:
    """A clone of ``model`` with a LoRA on it, and a line for each kind of weights in the file that is not used; without
    a file, ``model`` itself.

    A pair's text side is the same for both members, so weights for text encoders are left out.

    Raises:
        PairError: when nothing in the file is for this model.
    """
    if path is None:
        return model, []
    name = Path(path).name
    with loading(name, "LoRA"):
        state = comfy.lora_convert.convert_lora(comfy.utils.load_torch_file(path, safe_load=True))
        places = comfy.lora.model_lora_keys_unet(model.model, {})
        text = {key for key in state if key.startswith(TEXT_ENCODER_KEYS) and not _place(key, places)}
        foreign = {key for key in state if key not in text and not _place(key, places)}
        patches = comfy.lora.load_lora({key: state[key] for key in state if key not in text}, places)
    patched = model.clone()
    if not patched.add_patches(patches, strength):
        if len(text) == len(state):
            raise pair.PairError(
                f"{name} has weights for text encoders only ({_weights(text)}), which a pair does not use; put it on "
                "the CLIP with LoraLoader, and choose a LoRA of the diffusion model here"
            )
        raise pair.PairError(f"{name} changes no weight of `model`; connect the base that it was trained on")
    kinds = (
        (text, "for text encoders, which are not used; where both members need them, put them on the CLIP"),
        (foreign, "that `model` has no place for, which are not used; is it the base that it was trained on?"),
    )
    return patched, [f"{name} also has {_weights(keys)} weights {words}" for keys, words in kinds if keys]


def _place(key: str, places: dict) -> bool:
    """Whether a key of a LoRA is about one of the model's places: it begins with its name, up to a dot or `_lora.`."""
    parts = key.split(".")
    names = (".".join(parts[:end]) for end in range(1, len(parts)))
    return any(name in places or name.removesuffix("_lora") in places for name in names)


def _weights(keys: Iterable[str]) -> int:
    """How many weights the keys of a LoRA are about: a weight has an up, a down and an alpha."""
    return len({KEY_ENDS.split(key)[0] for key in keys})


class CHATSLoRAPairLoader(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        files = [NONE, *safetensors_files(FOLDER)]
        members = ("preferred", "dispreferred")
        file_tooltip = (
            "LoRA of the {0} member, from ComfyUI's loras folder (.safetensors). none: `model` itself is the {0} one."
        )
        strength_tooltip = "Strength of the {} LoRA; a pair is trained for 1."
        bounds = dict(default=1.0, min=-10.0, max=10.0, step=0.01, round=0.001)
        return io.Schema(
            node_id="CHATSLoRAPairLoader",
            display_name="Load CHATS LoRA Pair",
            category="loaders/CHATS",
            description="Puts the two LoRAs of a pair on one base, or one LoRA on a preferred model. CHATS Apply then "
            "holds one set of weights and runs both sides in one batch, as CFG does. Shows the settings that the "
            "pair's metadata recommends.",
            inputs=[
                io.Model.Input(
                    "model",
                    tooltip="The base that the pair was trained on, or the preferred model that a LoRA leads from.",
                ),
                *(
                    io.Combo.Input(f"{member}_lora", options=files, tooltip=file_tooltip.format(member))
                    for member in members
                ),
                *(
                    io.Float.Input(f"strength_{member}", tooltip=strength_tooltip.format(member), **bounds)
                    for member in members
                ),
            ],
            outputs=model_outputs(),
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def validate_inputs(cls, preferred_lora: str | None = None, dispreferred_lora: str | None = None) -> bool | str:
        if preferred_lora == dispreferred_lora == NONE:
            return "`preferred_lora` and `dispreferred_lora` are both none; choose at least one LoRA"
        return validate_pair(FOLDER, preferred_lora, dispreferred_lora, SUFFIX, optional=True)

    @classmethod
    def execute(
        cls,
        model: ModelPatcher,
        preferred_lora: str,
        dispreferred_lora: str,
        strength_preferred: float,
        strength_dispreferred: float,
    ) -> io.NodeOutput:
        require_models(model=model)
        paths = pair_paths(FOLDER, preferred_lora, dispreferred_lora, SUFFIX, optional=True)
        found, warnings = check_pair(paths)
        strengths = (strength_preferred, strength_dispreferred)
        loaded = [with_lora(model, path, strength) for path, strength in zip(paths, strengths, strict=True)]
        warnings += [line for _, lines in loaded for line in lines]
        show_pair(found.metadata, warnings, cls.hidden.unique_id if cls.hidden else None)
        models = with_metadata(found.metadata, *(patched for patched, _ in loaded), distilled=found.distilled)
        if paths[1] is None:
            # The base as the negative is no member of the pair.
            models[1].remove_attachments(ATTACHMENT)
        return io.NodeOutput(*models)


NODES = [CHATSLoRAPairLoader]
