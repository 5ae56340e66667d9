"""Scorers of pictures: PickScore and HPS v2 (CLIP models in transformers' format), ImageReward (through its own
package), and the benchmarks, which know what their own prompts ask for.

What fits: PickScore as published (hub id yuvalkirstain/PickScore_v1); for HPS v2, whose own file is an OpenCLIP pickle,
a conversion to a CLIPModel with its tokenizer (adams-story/HPSv2-hf is one), as far as it holds .safetensors. Nothing
is fetched unless a hub id is named, and no pickle is ever opened.
"""

from __future__ import annotations

import difflib
import tempfile
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from ..support.errors import UserError
from ..support.hub import fetching
from .benchmark import Scorer
from .clip_scorer import ClipScorer
from .prompts import EvaluationPrompt
from .weights import (
    folder_digest,
    open_folder,
    require_safetensors,
    require_whole,
)


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
        require_safetensors(self.name, folder)

    @cached_property
    def fingerprint(self) -> str:
        return folder_digest(self.folder, self.name)

    @cached_property
    def model(self) -> Any:
        from safetensors.torch import load_file

        begun = f"`--scorer` imagereward wants the tokenizer of {TOKENIZER}, which"
        with fetching(begun, TOKENIZER, "fetch it beforehand"):
            model = self.cls(med_config=str(self.folder / "med_config.json"), device=self.device)
        state = {
            key: tensor for file in sorted(self.folder.glob("*.safetensors")) for key, tensor in load_file(file).items()
        }
        require_whole(self.name, self.folder, model.load_state_dict(state, strict=False).missing_keys)
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


# Those that score any picture by its prompt's text.
TEXT_KINDS = ("pickscore", "hpsv2", "imagereward")
FORMS = {
    **dict.fromkeys(TEXT_KINDS, "FOLDER_OR_HUB_ID"),
    "geneval": "SEGMENTER,CLIP",
    "dpg": "VQA_MODEL,QUESTIONS.csv",
}
KINDS = tuple(FORMS)
BENCHMARK_KINDS = tuple(kind for kind in KINDS if kind not in TEXT_KINDS)
# HPS v2 is the plain cosine, reported in percent (the paper's Table 1).
HPS_FACTOR = 100.0
# Of ImageReward, which its package takes from the hub.
TOKENIZER = "bert-base-uncased"


def open_scorers(specs: Sequence[str], device: torch.device | str, kinds: Sequence[str] = KINDS) -> list[Scorer]:
    """The scorers that ``kind=source`` names, each with local folders or hub ids, which are then fetched. Weights are
    read later.

    Args:
        kinds: that may be named.

    Raises:
        UserError: for an unknown kind, one that is named twice, or a source that cannot be used.
    """
    scorers: dict[str, Scorer] = {}
    for spec in specs:
        kind, separator, source = spec.partition("=")
        if not separator or kind not in kinds:
            near = difflib.get_close_matches(kind, kinds, n=1)
            hint = (
                f"; did you mean {near[0]}=…?"
                if near and separator
                else f"; give one of {', '.join(f'{each}={FORMS[each]}' for each in kinds)}"
            )
            raise UserError(f"`--scorer` is `{spec}`{hint}")
        if kind in scorers:
            raise UserError(f"`--scorer` names {kind} twice; name it once")
        if not source:
            # As a path it would be the current folder.
            raise UserError(f"`--scorer` is `{spec}`, which names no weights; give {kind}={FORMS[kind]}")
        scorers[kind] = _opened(kind, source, device)
    return list(scorers.values())


def _opened(kind: str, source: str, device: torch.device | str) -> Scorer:
    if kind in TEXT_KINDS:
        folder = open_folder(kind, source, "med_config.json" if kind == ImageRewardScorer.name else "config.json")
        if kind == ImageRewardScorer.name:
            return ImageRewardScorer(folder, device)
        return ClipScorer(kind, folder, HPS_FACTOR if kind == "hpsv2" else None, device)
    first, _, second = (each.strip() for each in source.rpartition(","))
    if not (first and second):
        raise UserError(f"`--scorer` is `{kind}={source}`, which names one thing of two; give {kind}={FORMS[kind]}")
    if kind == "geneval":
        from .benchmarks.geneval_scorer import GenEvalScorer

        return GenEvalScorer(first, second, device)
    from .benchmarks.dpg_scorer import DPGScorer

    return DPGScorer(first, second, device)
