"""Loaders of pairs: two files in, two ordinary MODELs out, so that any other node can still work on each."""

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import MappingProxyType
from typing import NamedTuple, get_args

import comfy.model_management
import comfy.sd
import folder_paths
import nodes as comfy_nodes
from comfy.model_patcher import ModelPatcher
from comfy_api.latest import io

from ...chats import pair
from ...chats.distilled import distilled_members
from ...chats.words import shown, shown_error
from ..advice import ATTACHMENT, DISTILLED, prediction_advice, show
from ..inputs import advanced

# What stands in a list of files for no file.
NONE = "none"
NO_METADATA = "no settings in these files, as in the published pairs: null an empty prompt, alpha 0.5, cfg 6"


def pair_paths(
    folder: str, preferred: object, dispreferred: object, suffix: str = "", optional: bool = False
) -> tuple[str | None, str | None]:
    """The full paths of two files of one of ComfyUI's model folders; with ``optional``, None for `none`.

    An error names the input that it is about, the member with ``suffix``, since ComfyUI shows it on both inputs.

    Raises:
        PairError: when a name is no text, or its file is not there.
    """
    paths: list[str | None] = []
    missing = []
    for member, name in (("preferred", preferred), ("dispreferred", dispreferred)):
        setting = f"{member}{suffix}"
        if not isinstance(name, str):
            raise pair.PairError(f"`{setting}` is `{shown(name)}`, which is no file's name; choose a file")
        left_out = optional and name == NONE
        paths.append(None if left_out else folder_paths.get_full_path(folder, name))
        if paths[-1] is None and not left_out:
            missing.append(f"`{setting}` is {shown(name)}")
    if missing:
        which, way_out = (
            ("is", "put it there or choose another file")
            if len(missing) == 1
            else ("are", "put them there or choose others")
        )
        raise pair.PairError(f"{' and '.join(missing)}, which {which} not in ComfyUI's {folder} folder; {way_out}")
    return paths[0], paths[1]


class CheckedFiles(NamedTuple):
    """What two files say of themselves: the pair's metadata, and a line for each that is no member, as it was distilled
    from a pair."""

    metadata: pair.PairMetadata | None
    distilled: dict[pair.Member, str]


def check_pair(paths: tuple[str | None, str | None]) -> tuple[CheckedFiles, list[str]]:
    """Checks the files; what they say of themselves, and what is to be warned of.

    Raises:
        PairError: when they cannot be sampled as a pair.
    """
    metadata, warnings = pair.check_files(*paths)
    found = CheckedFiles(metadata, distilled_members(*paths))
    return found, [*found.distilled.values(), *warnings]


def read_pair(paths: tuple[str | None, str | None], node_id: str | None) -> CheckedFiles:
    """Checks the files, shows on the node what their metadata recommends, and logs what does not fit together."""
    found, warnings = check_pair(paths)
    show_pair(found.metadata, warnings, node_id)
    return found


def show_pair(metadata: pair.PairMetadata | None, warnings: list[str], node_id: str | None) -> None:
    """Shows on the node what the metadata recommends, what the pair was trained on, and the warnings; logs those."""
    for warning in warnings:
        logging.warning("CHATS: %s", warning)
    recommended = f"recommended: {metadata.recommendation()}" if metadata and metadata.recommendation() else NO_METADATA
    lines = [] if recommended == NO_METADATA and warnings else [recommended]
    if metadata and (origin := metadata.origin()):
        lines.append(f"trained on {origin}")
    show("\n".join([*lines, *(f"⚠ {warning}" for warning in warnings)]), node_id)


# What ComfyUI raises for a file that is whole but not the model it was taken for: something is missing, or has another
# shape or type.
LOAD_ERRORS = (
    RuntimeError,
    KeyError,
    IndexError,
    ValueError,
    TypeError,
    AttributeError,
    AssertionError,
    ZeroDivisionError,
)


@contextmanager
def loading(name: str, kind: str) -> Iterator[None]:
    """Turns an error of ComfyUI's own loading into one that names the file and the way out. Memory that runs out stays
    ComfyUI's error.

    Raises:
        PairError: when the file is not a ``kind`` that ComfyUI can load.
    """
    try:
        yield
    except comfy.model_management.OOM_EXCEPTION:
        raise
    except LOAD_ERRORS as error:
        reason = shown_error(error)
        raise pair.PairError(
            f"ComfyUI cannot load {name} as a {kind} ({reason}); download or export it again, or choose another"
        ) from error


def with_metadata(
    metadata: pair.PairMetadata | None,
    *models: ModelPatcher,
    distilled: Mapping[pair.Member, str] = MappingProxyType({}),
) -> tuple[ModelPatcher, ...]:
    """The models as clones that carry what is known of their pair, and each what is known of its own file; warns when
    ComfyUI takes them for another kind of prediction."""
    if advice := prediction_advice(metadata, models[0]):
        logging.warning("CHATS: %s", advice)
    clones = tuple(model.clone() for model in models)
    for clone, member in zip(clones, get_args(pair.Member), strict=True):
        clone.set_attachments(ATTACHMENT, metadata)
        if member in distilled:
            clone.set_attachments(DISTILLED, (distilled[member],))
    return clones


def validate_pair(
    folder: str, preferred: object, dispreferred: object, suffix: str = "", optional: bool = False
) -> bool | str:
    """What ComfyUI shows when a workflow is queued: True, or one sentence. An input that is a link is still None."""
    if preferred is None or dispreferred is None:
        return True
    try:
        pair.check_files(*pair_paths(folder, preferred, dispreferred, suffix, optional))
    except pair.PairError as error:
        return str(error)
    return True


def safetensors_files(folder: str) -> list[str]:
    """The files of one of ComfyUI's model folders that can be opened without running code."""
    return [name for name in folder_paths.get_filename_list(folder) if name.lower().endswith(pair.SAFETENSORS_SUFFIXES)]


def file_inputs(folder: str) -> list[io.Combo.Input]:
    files = safetensors_files(folder)
    tooltip = "File of the {} member, from ComfyUI's {} folder (.safetensors)."
    return [
        io.Combo.Input(member, options=files, tooltip=tooltip.format(member, folder))
        for member in ("preferred", "dispreferred")
    ]


def model_outputs() -> list[io.Model.Output]:
    return [
        io.Model.Output(
            display_name="preferred", tooltip="For the preferred input of CHATS Apply, Guider or KSampler."
        ),
        io.Model.Output(
            display_name="dispreferred", tooltip="For the dispreferred input of CHATS Apply, Guider or KSampler."
        ),
    ]


class CHATSCheckpointPairLoader(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="CHATSCheckpointPairLoader",
            display_name="Load CHATS Checkpoint Pair",
            category="loaders/CHATS",
            description="Loads a preferred and a dispreferred checkpoint. CLIP and VAE come from the preferred one. "
            "Shows the settings that the pair's metadata recommends.",
            inputs=file_inputs("checkpoints"),
            outputs=[
                *model_outputs(),
                io.Clip.Output(display_name="CLIP", tooltip="The text encoder, from the preferred checkpoint."),
                io.Vae.Output(display_name="VAE", tooltip="The VAE, from the preferred checkpoint."),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def validate_inputs(cls, preferred: str | None = None, dispreferred: str | None = None) -> bool | str:
        return validate_pair("checkpoints", preferred, dispreferred)

    @classmethod
    def execute(cls, preferred: str, dispreferred: str) -> io.NodeOutput:
        paths = pair_paths("checkpoints", preferred, dispreferred)
        found = read_pair(paths, cls.hidden.unique_id if cls.hidden else None)
        embeddings = folder_paths.get_folder_paths("embeddings")
        with loading(preferred, "checkpoint"):
            model, clip, vae = comfy.sd.load_checkpoint_guess_config(paths[0], embedding_directory=embeddings)[:3]
        with loading(dispreferred, "checkpoint"):
            other = comfy.sd.load_checkpoint_guess_config(paths[1], output_vae=False, output_clip=False)[0]
        return io.NodeOutput(*with_metadata(found.metadata, model, other, distilled=found.distilled), clip, vae)


class CHATSDiffusionModelPairLoader(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="CHATSDiffusionModelPairLoader",
            display_name="Load CHATS Diffusion Model Pair",
            category="loaders/CHATS",
            description="Loads a preferred and a dispreferred diffusion model (UNet or transformer, ComfyUI's or "
            "diffusers' layout). CLIP and VAE come from other loaders. Shows the settings that the pair's metadata "
            "recommends.",
            inputs=[
                *file_inputs("diffusion_models"),
                advanced(
                    io.Combo.Input(
                        "weight_dtype",
                        options=comfy_nodes.UNETLoader.INPUT_TYPES()["required"]["weight_dtype"][0],
                        tooltip="Precision of both models in memory; fp8 halves the memory of fp16 at some cost in "
                        "quality.",
                    )
                ),
            ],
            outputs=model_outputs(),
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def validate_inputs(cls, preferred: str | None = None, dispreferred: str | None = None) -> bool | str:
        return validate_pair("diffusion_models", preferred, dispreferred)

    @classmethod
    def execute(cls, preferred: str, dispreferred: str, weight_dtype: str) -> io.NodeOutput:
        paths = pair_paths("diffusion_models", preferred, dispreferred)
        found = read_pair(paths, cls.hidden.unique_id if cls.hidden else None)
        models = []
        for name in (preferred, dispreferred):
            with loading(name, "diffusion model"):
                models.append(comfy_nodes.UNETLoader().load_unet(name, weight_dtype)[0])
        return io.NodeOutput(*with_metadata(found.metadata, *models, distilled=found.distilled))


NODES = [CHATSCheckpointPairLoader, CHATSDiffusionModelPairLoader]
