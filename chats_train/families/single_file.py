"""One native .safetensors checkpoint as a source of parts, read offline with the small configs bundled here.

The denoiser comes through the same layout that export writes, so what is exported can be trained on. What the file
lacks (SD3's and Flux's VAE and text encoders, every tokenizer) comes from beside it: a diffusers folder, or for CLIP's
tokenizer the one that ComfyUI ships.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from chats.words import shown

from ..layouts.formats import file_format
from ..layouts.places import LayoutError, Place, from_native
from ..settings.family_facts import FamilyFacts
from ..support.digests import file_digest
from ..support.tensor_files import TensorReader
from .native_file import NativeFile
from .scaled_fp8 import dequantized
from .source_error import SourceError
from .sources import FolderSource, Shapes, Source, read_json

CONFIGS = Path(__file__).parent / "configs"
# CLIP's tokenizer as ComfyUI ships it, below ComfyUI's folder.
COMFYUI_TOKENIZER = Path("comfy", "sd1_tokenizer")


class CheckpointSource(Source):
    """A checkpoint file, or a file with nothing but the denoiser.

    Args:
        path: the .safetensors file.
        facts: of the family; its ``prefixes`` say how the file is cut into parts.
        denoiser_config: of the family's adapter, :meth:`.base.Family.denoiser_config`.
        encoders: a diffusers folder for every part but the denoiser; needed where the file does not hold them.
        tokenizer: a folder with CLIP's `vocab.json` and `merges.txt`; by default ComfyUI's, where one is found.
        configs: a folder of configurations in diffusers' arrangement; by default the bundled ones.
    """

    def __init__(
        self,
        path: Path,
        facts: FamilyFacts,
        denoiser_config: Callable[[Shapes], dict[str, Any] | None] = lambda native: None,
        encoders: FolderSource | None = None,
        tokenizer: Path | None = None,
        configs: Path | None = None,
    ):
        self.path, self.facts, self.denoiser_config, self.encoders = path, facts, denoiser_config, encoders
        self.tokenizer_folder = tokenizer
        self.configs = configs or CONFIGS / facts.name
        self.file = NativeFile(path, facts)

    def require_kind(self) -> None:
        self.file.require_kind()

    def require_stated_prediction(self) -> None:
        self.file.require_stated_prediction()

    def require_whole(self, classes: Mapping[str, type], denoiser: str) -> None:
        shapes = self.shapes(denoiser)
        # Tensors without numbers, so that the shapes are tried as loading will cut them.
        native = {key: torch.empty(info.shape, device="meta") for key, info in self.file.weights(denoiser).items()}
        places = self._places(shapes)
        self._from_native(native, places, shapes)
        if lost := sorted(native.keys() - {place.key for place in places.values()}):
            raise SourceError(
                f"{self.file} has {len(lost)} weights that no {self.facts.title} has, the first is `{shown(lost[0])}`; "
                "give the base without what was added to it"
            )
        for part, cls in classes.items():
            if part == denoiser:
                continue
            if (lender := self._lender(part)) is not None:
                lender.require_whole({part: cls}, denoiser)
            else:
                self.file.scales(part)

    def where(self, part: str) -> str:
        if part == "scheduler" or (part == self.facts.denoiser_part and self._told() is not None):
            return str(self.file)
        if (lender := self._lender(part)) is not None:
            return lender.where(part)
        return f"`configs` {self.configs / part / 'config.json'}"

    @property
    def notes(self) -> list[str]:
        return self.file.notes()

    def config(self, part: str) -> dict[str, Any]:
        told = self._told() if part == self.facts.denoiser_part else None
        if told is not None:
            return told
        if (lender := self._lender(part)) is not None:
            return lender.config(part)
        return read_json(self.configs / part / "config.json")

    def module(self, part: str, cls: Any, dtype: torch.dtype) -> nn.Module:
        if part == self.facts.denoiser_part:
            return self._denoiser(cls, dtype)
        if (lender := self._lender(part)) is not None:
            return lender.module(part, cls, dtype)
        prefix = self.facts.prefixes[part]
        tensors = {prefix + key: tensor for key, tensor in self.file.read_whole(part, dtype).items()}
        module = _converted(cls, tensors, self.configs, part)
        if module is None:
            raise SourceError(
                f"{self.path.name} lacks weights of its {part}; download it again, or set `encoders` to a diffusers "
                "folder"
            )
        return module.eval()

    def tokenizer(self, part: str) -> Any:
        if self.encoders is not None:
            return self.encoders.tokenizer(part)
        from transformers import CLIPTokenizer

        return CLIPTokenizer.from_pretrained(self._clip_tokenizer(), local_files_only=True, model_max_length=77)

    def shapes(self, part: str) -> Shapes:
        if part == self.facts.denoiser_part:
            return {key: tuple(value.shape) for key, value in self._empty_denoiser().state_dict().items()}
        lender = self._lender(part)
        return self._native_shapes(part) if lender is None else lender.shapes(part)

    def digest(self, parts: Iterable[str]) -> str:
        total = hashlib.sha256()
        for part in parts:
            total.update(f"{part}:{self._part_digest(part)}\n".encode())
        return total.hexdigest()

    @property
    def index(self) -> dict[str, Any]:
        return {}

    @property
    def noise(self) -> dict[str, Any]:
        marked = {"prediction_type": "v_prediction"} if self.file.is_marked("v_pred") else {}
        return marked | ({"rescale_betas_zero_snr": True} if self.file.is_marked("ztsnr") else {})

    @property
    def zeros_for_empty_prompt(self) -> bool:
        return True if self.encoders is None else self.encoders.zeros_for_empty_prompt

    def _lender(self, part: str) -> FolderSource | None:
        """The diffusers folder beside the file, where a part comes from it."""
        if self.encoders is not None:
            return self.encoders
        if part not in self.facts.prefixes or not any(
            key.startswith(self.facts.prefixes[part]) for key in self.file.held
        ):
            raise SourceError(
                f"`pretrained_model` {self.path.name} holds no `{part}`; set `encoders` to a diffusers folder of the "
                "family that has one"
            )
        return None

    def _told(self) -> dict[str, Any] | None:
        """The denoiser's configuration as its shapes tell it, where the family's do."""
        try:
            return self.denoiser_config(self._native_shapes(self.facts.denoiser_part))
        except KeyError as error:
            raise SourceError(f"{self.file} has no `{error.args[0]}`, so it is not whole; download it again") from error
        except (ValueError, IndexError) as error:
            raise SourceError(
                f"{self.file} has weights of other shapes than a {self.facts.title}; correct `family`"
            ) from error

    def _native_shapes(self, part: str) -> Shapes:
        return {key: info.shape for key, info in self.file.weights(part).items()}

    def _empty_denoiser(self) -> nn.Module:
        import diffusers
        from accelerate import init_empty_weights

        config = self.config(self.facts.denoiser_part)
        with init_empty_weights(include_buffers=True):
            return getattr(diffusers, config["_class_name"]).from_config(config)

    def _denoiser(self, cls: Any, dtype: torch.dtype) -> nn.Module:
        from accelerate import init_empty_weights
        from diffusers.models.modeling_utils import no_init_weights

        # Tables that a module computes for itself are in no file: only its weights are left empty.
        with no_init_weights(), init_empty_weights():
            module = cls.from_config(self.config(self.facts.denoiser_part))
        shapes = {key: tuple(value.shape) for key, value in module.state_dict().items()}
        places, native = self._places(shapes), self.file.read(self.facts.denoiser_part)
        scales = self.file.scales(self.facts.denoiser_part)

        def number(key: str, tensor: Tensor) -> Tensor:
            scale = scales.get(places[key].key)
            # Copies, so that the module does not keep the whole file mapped and fused tensors alive.
            return tensor.to(dtype, copy=True) if scale is None else dequantized(tensor, native[scale]).to(dtype)

        tensors = self._from_native(native, places, shapes)
        module.load_state_dict({key: number(key, tensor) for key, tensor in tensors.items()}, strict=True, assign=True)
        return module.requires_grad_(True).eval()

    def _places(self, shapes: Shapes) -> dict[str, Place]:
        return file_format(self.facts.name).layout(shapes)

    def _from_native(
        self, native: Mapping[str, Tensor], places: Mapping[str, Place], shapes: Shapes
    ) -> dict[str, Tensor]:
        try:
            return from_native(native, places, shapes)
        except LayoutError as error:
            raise SourceError(f"{self.file}: {error}") from error

    def _clip_tokenizer(self) -> Path:
        candidates = (
            [self.tokenizer_folder]
            if self.tokenizer_folder
            else [folder / COMFYUI_TOKENIZER for folder in _comfyui_folders()]
        )
        for folder in candidates:
            if (folder / "vocab.json").is_file() and (folder / "merges.txt").is_file():
                return folder
        raise SourceError(
            f"{self.path.name} holds no tokenizer, and no ComfyUI was found to lend its own (looked in "
            f"{', '.join(map(str, candidates))}); "
            "set `tokenizer` to a folder with CLIP's vocab.json and merges.txt, or `encoders` to a diffusers folder"
        )

    def _part_digest(self, part: str) -> str:
        if part != self.facts.denoiser_part and self.encoders is not None:
            return self.encoders.digest([part])
        total = hashlib.sha256()
        if part.startswith("tokenizer"):
            folder = self._clip_tokenizer()
            return hashlib.sha256(
                "".join(file_digest(folder / name) for name in ("vocab.json", "merges.txt")).encode()
            ).hexdigest()
        prefix, reader = self.file.prefix(part), TensorReader(self.path)
        for name in sorted(key for key in self.file.held if key.startswith(prefix)):
            key, tensor = name[len(prefix) :], reader.read(name)
            total.update(f"{key} {tensor.dtype} {list(tensor.shape)}\n".encode())
            total.update(tensor.contiguous().flatten().view(torch.uint8).numpy().data)
        if part != self.facts.denoiser_part and self.file.scales(part):
            # Version 0.1.0 took the codes for numbers; what it cached with them is not to be used.
            total.update(b"by their scales")
        return total.hexdigest()


def _comfyui_folders() -> list[Path]:
    """Where a ComfyUI may be: COMFYUI_PATH, else above `custom_nodes/` that holds this package, else comfy-cli's
    place."""
    if stated := os.environ.get("COMFYUI_PATH"):
        return [Path(stated)]
    root = Path(__file__).resolve().parents[2]
    above = [root.parent.parent] if root.parent.name == "custom_nodes" else []
    return [*above, Path.home() / "comfy" / "ComfyUI"]


def _converted(cls: Any, tensors: dict[str, Tensor], configs: Path, part: str) -> nn.Module | None:
    """VAE or CLIP through diffusers' own converters, which stay offline when ``configs`` is local; None when a weight
    is missing."""
    from diffusers.loaders.single_file_utils import create_diffusers_clip_model_from_ldm

    where = {"config": str(configs), "subfolder": part, "local_files_only": True}
    if not hasattr(cls, "from_single_file"):
        module = create_diffusers_clip_model_from_ldm(cls, checkpoint=tensors, **where)
        return None if any(tensor.is_meta for tensor in module.state_dict(keep_vars=True).values()) else module
    try:
        return cls.from_single_file(tensors, **where)
    except NotImplementedError:
        # torch's word for a weight that is still on the meta device when the module is moved.
        return None
