"""Scorers of pictures: PickScore and HPS v2 (CLIP models in transformers' format) and ImageReward (through its own
package).

What fits: PickScore as published (hub id yuvalkirstain/PickScore_v1); for HPS v2, whose own file is an OpenCLIP pickle,
a conversion to a CLIPModel with its tokenizer (adams-story/HPSv2-hf is one), as far as it holds .safetensors. Nothing
is fetched unless a hub id is named, and no pickle is ever opened.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import tempfile
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..families.sources import HASHED_SUFFIXES
from ..support.digests import file_digest
from ..support.errors import UserError
from ..support.hub import Wanted, fetching, local_or_fetched
from .prompts import EvaluationPrompt

# OpenAI's CLIP, whose preprocessing its descendants kept; a folder's preprocessor_config.json may say otherwise.
CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


class Scorer(Protocol):
    """Anything that gives pictures a number, more being better. A detector counts too: 1 for right and 0 for wrong.

    Attributes:
        name: of its column.
        fingerprint: changes with whatever its scores depend on beside the picture and the prompt's text (what it reads
            of the prompt's metadata, too); a kept score of another fingerprint is not used again.
    """

    name: str

    @property
    def fingerprint(self) -> str: ...

    def score(self, images: Sequence[Image.Image], prompts: Sequence[EvaluationPrompt]) -> Tensor:
        """A score for each picture and its prompt, [batch]."""
        ...


class ClipScorer:
    """The cosine of a CLIP model's embeddings of picture and prompt, times a factor. Its weights are loaded when first
    needed.

    Args:
        name: of the scorer.
        folder: a CLIPModel in transformers' format, with its tokenizer.
        factor: None takes the model's own exp(logit_scale).
        device: to score on, in float32.

    Raises:
        UserError: when the folder is not whole, or its weights are pickled only.
    """

    def __init__(self, name: str, folder: Path, factor: float | None, device: torch.device | str):
        self.name, self.folder, self.factor, self.device = name, folder, factor, torch.device(device)
        for file in ("config.json", "tokenizer_config.json"):
            if not (folder / file).is_file():
                raise UserError(
                    f"`--scorer` {name} is {folder}, which has no {file}; give a CLIPModel in transformers' format"
                )
        kind = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("model_type")
        if kind != "clip":
            raise UserError(
                f"`--scorer` {name} is {folder}, whose config.json says `model_type` {kind}; give a CLIPModel (`clip`)"
            )
        _require_safetensors(name, folder)

    @cached_property
    def fingerprint(self) -> str:
        return _digest(self.folder, str(self.factor))

    @cached_property
    def model(self) -> Any:
        from transformers import CLIPModel

        options = {"local_files_only": True, "use_safetensors": True, "output_loading_info": True}
        model, loading = CLIPModel.from_pretrained(self.folder, **options)
        _require_whole(self.name, self.folder, loading["missing_keys"])
        return model.eval().to(self.device)

    @cached_property
    def tokenizer(self) -> Any:
        from transformers import AutoTokenizer

        return AutoTokenizer.from_pretrained(self.folder, local_files_only=True)

    @torch.no_grad()
    def score(self, images: Sequence[Image.Image], prompts: Sequence[EvaluationPrompt]) -> Tensor:
        length = self.model.config.text_config.max_position_embeddings
        texts = [prompt.text for prompt in prompts]
        tokens = self.tokenizer(texts, padding="max_length", max_length=length, truncation=True, return_tensors="pt")
        output = self.model(
            input_ids=tokens.input_ids.to(self.device),
            attention_mask=tokens.attention_mask.to(self.device),
            pixel_values=torch.stack([self._pixels(image) for image in images]).to(self.device),
        )
        cosine = (output.image_embeds * output.text_embeds).sum(dim=-1)  # [batch]; the model returns them normalised
        return (cosine * (self.model.logit_scale.exp() if self.factor is None else self.factor)).cpu()

    def _pixels(self, image: Image.Image) -> Tensor:
        """CLIP's preprocessing with Pillow, whatever transformers' own processor would use: [3, side, side]."""
        side = self.model.config.vision_config.image_size
        scale = side / min(image.size)
        width, height = (max(side, int(length * scale)) for length in image.size)
        resized = image.convert("RGB").resize((width, height), Image.Resampling.BICUBIC)
        left, top = (width - side) // 2, (height - side) // 2
        levels = torch.from_numpy(np.array(resized.crop((left, top, left + side, top + side)))).permute(2, 0, 1) / 255
        mean, std = (torch.tensor(values)[:, None, None] for values in self._normalisation)
        return (levels - mean) / std

    @cached_property
    def _normalisation(self) -> tuple[Sequence[float], Sequence[float]]:
        file = self.folder / "preprocessor_config.json"
        stated = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
        return stated.get("image_mean", CLIP_MEAN), stated.get("image_std", CLIP_STD)


class ImageRewardScorer:
    """ImageReward by its own package (`pip install image-reward`), with weights from a folder: med_config.json, and the
    published ImageReward.pt converted to .safetensors once. The package itself fetches the tokenizer of
    bert-base-uncased where the hub's cache lacks it.

    Raises:
        UserError: when the package is missing or cannot be imported, or the folder is not whole.
    """

    name = "imagereward"

    def __init__(self, folder: Path, device: torch.device | str):
        self.folder, self.device = folder, torch.device(device)
        try:
            from ImageReward.ImageReward import ImageReward
        except ImportError as error:
            raise UserError(
                f"`--scorer` imagereward needs the package image-reward, which cannot be imported ({error}); `pip "
                "install image-reward`, "
                "or score with pickscore or hpsv2"
            ) from error
        self.cls = ImageReward
        if not (folder / "med_config.json").is_file():
            raise UserError(
                f"`--scorer` imagereward is {folder}, which has no med_config.json; download it beside the weights"
            )
        _require_safetensors(self.name, folder)

    @cached_property
    def fingerprint(self) -> str:
        return _digest(self.folder, self.name)

    @cached_property
    def model(self) -> Any:
        from safetensors.torch import load_file

        begun = f"`--scorer` imagereward wants the tokenizer of {TOKENIZER}, which"
        with fetching(begun, TOKENIZER, "fetch it beforehand"):
            model = self.cls(med_config=str(self.folder / "med_config.json"), device=self.device)
        state = {
            key: tensor for file in sorted(self.folder.glob("*.safetensors")) for key, tensor in load_file(file).items()
        }
        _require_whole(self.name, self.folder, model.load_state_dict(state, strict=False).missing_keys)
        return model.eval().to(self.device)

    @torch.no_grad()
    def score(self, images: Sequence[Image.Image], prompts: Sequence[EvaluationPrompt]) -> Tensor:
        scores = []
        with tempfile.TemporaryDirectory() as folder:
            file = str(Path(folder) / "picture.png")  # a path is what every version of the package takes
            for image, prompt in zip(images, prompts, strict=True):
                image.save(file)
                scores.append(float(self.model.score(prompt.text, file)))
        return torch.tensor(scores)


KINDS = ("pickscore", "hpsv2", "imagereward")
# HPS v2 is the plain cosine, reported in percent (the paper's Table 1).
HPS_FACTOR = 100.0
# Of ImageReward, which its package takes from the hub.
TOKENIZER = "bert-base-uncased"
FORMS = "a folder or a hub id (owner/name)"


def open_scorers(specs: Sequence[str], device: torch.device | str) -> list[Scorer]:
    """The scorers that ``kind=source`` names, each with a local folder or a hub id, which is then fetched. Weights are
    read later.

    Raises:
        UserError: for an unknown kind, one that is named twice, or a source that cannot be used.
    """
    scorers: dict[str, Scorer] = {}
    for spec in specs:
        kind, separator, source = spec.partition("=")
        if not separator or kind not in KINDS:
            near = difflib.get_close_matches(kind, KINDS, n=1)
            hint = (
                f"; did you mean {near[0]}=…?"
                if near and separator
                else f"; give one of {', '.join(KINDS)} as KIND=FOLDER_OR_HUB_ID"
            )
            raise UserError(f"`--scorer` is `{spec}`{hint}")
        if kind in scorers:
            raise UserError(f"`--scorer` names {kind} twice; name it once")
        if not source:
            # As a path it would be the current folder.
            raise UserError(f"`--scorer` is `{spec}`, which names no weights; give {kind}=FOLDER_OR_HUB_ID")
        folder = _folder(kind, source)
        if kind == "imagereward":
            scorers[kind] = ImageRewardScorer(folder, device)
        else:
            scorers[kind] = ClipScorer(kind, folder, HPS_FACTOR if kind == "hpsv2" else None, device)
    return list(scorers.values())


def _folder(kind: str, source: str) -> Path:
    mark = "med_config.json" if kind == ImageRewardScorer.name else "config.json"
    return local_or_fetched(f"`--scorer` {kind}", source, Wanted("folder", FORMS, mark, _wanted_files))


def _wanted_files(names: Iterable[str]) -> list[str]:
    return [name for name in names if name.endswith(HASHED_SUFFIXES)]


def _require_safetensors(kind: str, folder: Path) -> None:
    if not any(folder.glob("*.safetensors")):
        note = " (HPS v2's own .pt is one; give a conversion to transformers' format)" if kind == "hpsv2" else ""
        raise UserError(
            f"`--scorer` {kind} is {folder}, which has no .safetensors file; pickled weights are never opened{note}"
        )


def _require_whole(kind: str, folder: Path, missing: Iterable[str]) -> None:
    """A weight that no file has would be left random, and its scores mean nothing."""
    # Position ids are no weights, and come and go with the version of transformers.
    missing = sorted(key for key in missing if not key.endswith("position_ids"))
    if missing:
        more = f" and {len(missing) - 1} more weights" if len(missing) > 1 else ""
        raise UserError(
            f"`--scorer` {kind} is {folder}, whose .safetensors lack {missing[0]}{more}; download or convert it again"
        )


def _digest(folder: Path, more: str) -> str:
    """SHA-256 over the files that a scorer reads, and ``more``."""
    files = sorted(path for path in folder.iterdir() if path.suffix in HASHED_SUFFIXES)
    return hashlib.sha256(
        "\n".join([more, *(f"{path.name}:{file_digest(path)}" for path in files)]).encode()
    ).hexdigest()
