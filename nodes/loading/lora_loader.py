"""Load CHATS LoRA Pair: a LoRA for each side on one base, two MODELs that share its weights."""

from pathlib import Path

import comfy.lora
import comfy.lora_convert
import comfy.utils
from comfy.model_patcher import ModelPatcher
from comfy_api.latest import io

from ...chats import pair
from ..inputs import require_models
from .loaders import (
    NONE,
    loading,
    model_outputs,
    pair_paths,
    read_pair,
    safetensors_files,
    validate_pair,
    with_metadata,
)

FOLDER = "loras"
# What follows the member in the names of the file inputs.
SUFFIX = "_lora"


def with_lora(model: ModelPatcher, path: str | None, strength: float) -> ModelPatcher:
    """A clone of ``model`` with a LoRA on it; without a file, ``model`` itself.

    Raises:
        PairError: when nothing in the file is for this model.
    """
    if path is None:
        return model
    with loading(Path(path).name, "LoRA"):
        state = comfy.lora_convert.convert_lora(comfy.utils.load_torch_file(path, safe_load=True))
        patches = comfy.lora.load_lora(state, comfy.lora.model_lora_keys_unet(model.model, {}))
    patched = model.clone()
    if not patched.add_patches(patches, strength):
        raise pair.PairError(f"{Path(path).name} changes no weight of `model`; connect the base that it was trained on")
    return patched


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
        metadata = read_pair(paths, cls.hidden.unique_id if cls.hidden else None)
        strengths = (strength_preferred, strength_dispreferred)
        models = [with_lora(model, path, strength) for path, strength in zip(paths, strengths, strict=True)]
        return io.NodeOutput(*with_metadata(metadata, *models))


NODES = [CHATSLoRAPairLoader]
