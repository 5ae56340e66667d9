"""Members as files that no run here made: whole models of diffusers or native, and LoRAs in the usual forms."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Literal

from safetensors.torch import load_file
from torch import Tensor

from chats.pair import PairMetadata, read_header, read_metadata
from chats.words import shown

from ..families import Family
from ..families.native_file import NativeFile
from ..families.sources import INDEX
from ..families.weight_files import find_weights
from ..layouts.formats import file_format, lora_names
from ..layouts.places import from_native
from ..layouts.recognition import (
    CHECKPOINT_PARTS,
    adapter_kind,
    denoiser_kind,
    is_lora,
    on_text_encoder,
    other_input,
)
from ..settings.facts import FAMILIES
from ..support.digests import file_digest
from ..support.errors import UserError
from ..support.tensor_files import TensorInfo, read_tensors

Kind = Literal["lora", "native", "diffusers"]
# Where a pipeline's folder has its denoiser; the first that is there.
DENOISER_FOLDERS = tuple(dict.fromkeys(facts.denoiser_part for facts in FAMILIES.values()))
# A product's two factors and its scale, behind a module's name: sd-scripts', and PEFT's.
FACTOR = re.compile(r"(?P<module>.+?)\.(?P<part>lora_down|lora_up|lora_A|lora_B)(?:\.default)?\.weight")
# A header's entry in which diffusers keeps PEFT's settings, JSON.
PEFT_SETTINGS = "lora_adapter_metadata"
DOWN_PARTS = ("lora_down", "lora_A")
# Before a module's diffusers name, dots kept or underscored.
DOTTED_PREFIXES = ("", "unet.", "transformer.", "base_model.model.", "base_model.model.unet.")


class MemberFile:
    """One member of a pair as the user has it.

    Args:
        path: a .safetensors file, a diffusers folder of the denoiser, or one of a whole pipeline.
        setting: the argument that named it, for errors.

    Attributes:
        files: that hold its weights.
        kind: what they are.
        metadata: what the file says of itself as a member, None where it says nothing.

    Raises:
        UserError, PairError: when it is no such file, or not whole.
    """

    def __init__(self, path: Path, setting: str):
        self.path, self.setting = path, setting
        self.files = _files(path, setting)
        self.metadata: PairMetadata | None = None if path.is_dir() else read_metadata(path)
        self._require_stated_scale()
        self.kind: Kind = self._kind()

    def __str__(self) -> str:
        return f"`{self.setting}` {self.path.name}"

    @cached_property
    def digest(self) -> str:
        """SHA-256 over its files."""
        return " ".join(file_digest(file) for file in self.files)

    def whole(self, family: Family) -> dict[str, Tensor]:
        """All weights of a whole model, by the names of the base's denoiser.

        Raises:
            UserError: when they are not those of a denoiser like the base's.
        """
        part = family.facts.denoiser_part
        shapes = family.source.shapes(part)
        if self.kind == "native":
            held = self._from_native(family, shapes)
        else:
            held = {key: tensor for file in self.files for key, tensor in load_file(file).items()}
        found = {key: tuple(tensor.shape) for key, tensor in held.items()}
        if differing := sorted(key for key in found.keys() | shapes.keys() if found.get(key) != shapes.get(key)):
            raise UserError(
                f"{self} has {len(differing)} weights that the base does not have in this shape, the first is "
                f"`{shown(differing[0])}`; correct `--base`, or give the whole file again"
            )
        return held

    def factors(self, family: Family) -> dict[str, tuple[Tensor, Tensor]]:
        """A LoRA's factors (down [rank, …], up [outputs, rank, …]) by module of the base's denoiser, in float32, the
        scale alpha / rank in ``up``.

        Raises:
            UserError: when it changes what is no plain layer of the base, so that it could not be applied whole.
        """
        shapes = family.source.shapes(family.facts.denoiser_part)
        modules = _modules_by_name(family.name, shapes)
        state = load_file(self.path)
        sides: dict[str, dict[str, Tensor]] = {}
        for key, tensor in state.items():
            found = FACTOR.fullmatch(key)
            name = found["module"] if found else key.removesuffix(".alpha")
            if name not in modules or not (found or key.endswith(".alpha")):
                raise UserError(self._unknown(key))
            side = "alpha" if found is None else "down" if found["part"] in DOWN_PARTS else "up"
            sides.setdefault(modules[name], {})[side] = tensor.float()
        return {module: self._product(module, parts, shapes) for module, parts in sides.items()}

    def _kind(self) -> Kind:
        tensors = _tensors(self.files)
        if is_lora(tensors):
            if adapter_kind(tensors) != "LoRA":
                raise UserError(
                    f"{self} is a {adapter_kind(tensors)}, which is not read here; give a LoRA, or whole models"
                )
            return "lora"
        bare = _bare(tensors)
        found = denoiser_kind(bare)
        if found is None or other_input(bare):
            raise UserError(
                f"{self} is {found or 'of a kind not known here'}; give a LoRA (.safetensors) or a whole model as "
                "`inspect` knows it"
            )
        return "diffusers" if found.layout == "diffusers" else "native"

    def _require_stated_scale(self) -> None:
        """diffusers may state alpha in the header alone; read as if it were the rank, the LoRA would be too strong or
        too weak."""
        said = {} if self.path.is_dir() else read_header(self.path)
        try:
            settings = dict(json.loads(said.get(PEFT_SETTINGS, "{}")))
        except (ValueError, TypeError):
            settings = {"lora_alpha": None}
        ranks = {value for key, value in settings.items() if key.split(".")[-1] == "r"}
        alphas = {value for key, value in settings.items() if key.split(".")[-1] == "lora_alpha"}
        patterns = any(value for key, value in settings.items() if key.endswith(("rank_pattern", "alpha_pattern")))
        if alphas - ranks or patterns:
            raise UserError(
                f"{self} states its alpha in the header (`{PEFT_SETTINGS}`) and not beside its factors; save it with "
                "`.alpha` keys, as sd-scripts does"
            )

    def _from_native(self, family: Family, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor]:
        file, part = NativeFile(self.path, family.facts), family.facts.denoiser_part
        file.require_kind()
        if file.is_marked("v_pred") != (family.prediction_type == "v_prediction") and family.facts.has_markers:
            raise UserError(
                f"{self} and the base do not predict the same ({family.prediction_type} is the base's); correct "
                "`--base`, or set `prediction_type` with `--set`"
            )
        native = file.read_whole(part, family.dtype)
        places = file_format(family.name).layout(shapes)
        if lost := sorted(native.keys() - {place.key for place in places.values()}):
            raise UserError(
                f"{self} has {len(lost)} weights that the base has not, the first is `{shown(lost[0])}`; correct "
                "`--base`"
            )
        return from_native(native, places, shapes)

    def _product(
        self, module: str, parts: Mapping[str, Tensor], shapes: Mapping[str, tuple[int, ...]]
    ) -> tuple[Tensor, Tensor]:
        shape = shapes[f"{module}.weight"]
        if not {"down", "up"} <= parts.keys():
            raise UserError(f"{self} has one factor of two for `{shown(module)}`; download it again")
        down, up = parts["down"], parts["up"]
        if down.shape[1:] != shape[1:] or up.shape[0] != shape[0] or up.shape[1] != down.shape[0]:
            raise UserError(
                f"{self} has factors {list(down.shape)} and {list(up.shape)} for `{shown(module)}`, which do not fit "
                f"the base's {list(shape)}; correct `--base`"
            )
        rank = down.shape[0]
        return down, up * (float(parts["alpha"]) / rank if "alpha" in parts else 1.0)

    def _unknown(self, key: str) -> str:
        if on_text_encoder(key):
            return (
                f"{self} changes a text encoder (`{shown(key)}`), which both members share here; give a LoRA of the "
                "denoiser alone"
            )
        return (
            f"{self} has `{shown(key)}`, which is no factor of a layer of the base; correct `--base`, or give the "
            "LoRA as sd-scripts or PEFT name it"
        )


def denoiser_tensors(path: Path, setting: str) -> dict[str, TensorInfo]:
    """Shape and dtype of a denoiser's weights, by its own keys, of whatever a :class:`MemberFile` may be.

    Raises:
        UserError: when it is no such file or folder.
    """
    return _bare(_tensors(_files(path, setting)))


def _files(path: Path, setting: str) -> tuple[Path, ...]:
    """The .safetensors files that hold a denoiser, or a LoRA."""
    if not path.is_dir():
        read_header(path)  # which refuses what is not there, and pickles
        return (path,)
    if not (path / INDEX).is_file():
        return find_weights(path).files
    parts = [path / part for part in DENOISER_FOLDERS if (path / part).is_dir()]
    if not parts:
        raise UserError(
            f"`{setting}` is {path}, a pipeline's folder without {' or '.join(DENOISER_FOLDERS)}; give the folder of "
            "the model itself"
        )
    return find_weights(parts[0]).files


def _tensors(files: Iterable[Path]) -> dict[str, TensorInfo]:
    return {key: info for file in files for key, info in read_tensors(file).items()}


def _bare(tensors: Mapping[str, TensorInfo]) -> dict[str, TensorInfo]:
    """A denoiser's weights by its own keys, whether or not a checkpoint has more."""
    (prefix,) = CHECKPOINT_PARTS["denoiser"]
    own = {key.removeprefix(prefix): info for key, info in tensors.items() if key.startswith(prefix)}
    return own or dict(tensors)


def _modules_by_name(family: str, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, str]:
    """Every name that a LoRA file may have for a module of the base: the exported one, diffusers' with and without a
    prefix, and that underscored.

    Two modules never share a name: the underscored ones were all told apart where LoRAs of them were first saved.
    """
    found = {name: module for module, name in lora_names(family, shapes).items()}
    for key in shapes:
        if key.endswith(".weight"):
            module = key.removesuffix(".weight")
            found |= {prefix + module: module for prefix in DOTTED_PREFIXES}
            found[f"lora_unet_{module.replace('.', '_')}"] = module
    return found
