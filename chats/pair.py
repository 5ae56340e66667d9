"""What makes two files a pair: the metadata in their safetensors headers, how it is read, written and compared.

Two kinds of header keys belong to a member of a pair: the field's own ``modelspec.*``
(https://github.com/Stability-AI/ModelSpec) and ``chats.*``, listed in :class:`PairMetadata`. All values are strings, as
safetensors wants them.

A member is written here, where it is read, and not in the trainer: a node that makes a pair may not import the trainer.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from .files import replacing
from .guidance import cfg_from_guidance_scale
from .headers import FORMAT_VERSION, header_entries, parsed_fields
from .headers import PairError as PairError
from .words import shown, shown_error

PREFIX = "chats."
# Of the keys of a model that was made out of a pair and its guidance, see `distilled`; it is no member.
DISTILLED_PREFIX = "chats.distilled."
# ComfyUI parses these two header keys as JSON of its own; a value of ours there would break loading.
RESERVED_KEYS = frozenset({"config", "_quantization_metadata"})
SAFETENSORS_SUFFIXES = (".safetensors", ".sft")

Member = Literal["preferred", "dispreferred"]
# The model that leads the preferred one: the pair's own other member, or the base that both started from.
Negative = Literal["dispreferred", "base"]
PredictionType = Literal["epsilon", "v_prediction", "flow"]
NullPrompt = Literal["encoded_empty", "zeros"]


class Metadata(Protocol):
    """What a file that this pack wrote says of itself: a :class:`PairMetadata` or a ``distilled.DistilledMetadata``."""

    @property
    def prediction_type(self) -> PredictionType | None: ...

    @property
    def resolution(self) -> int | None: ...

    def to_header(self) -> dict[str, str]: ...


@dataclass(frozen=True)
class PairMetadata:
    """The ``chats.*`` keys of one member; a field that the file does not state is None.

    ``alpha``, ``guidance_scale`` (the paper's s) and ``null_prompt`` are what the pair's maker recommends for sampling;
    ``resolution`` is in pixels, ``step`` the optimizer steps trained, the ``*_sha256`` are hexadecimal digests,
    ``proxy_*`` what :mod:`.probe` measured of the dispreferred member at ``alpha``; ``dataset_*`` are the name of the
    rated pairs and their number, ``held_out_accuracy`` the share of those not trained on that the pair tells right;
    ``base_file`` is the base's file in ComfyUI, where ``base_name`` is the architecture; such a pair has no
    ``base_sha256``, which is of a file's denoiser: what a MODEL computes with need not be what its file holds.
    ``negative`` is the better one beside the preferred member, where an evaluation of these weights found a difference.
    """

    member: Member
    format_version: int = FORMAT_VERSION
    pair_id: str | None = None
    base_name: str | None = None
    base_sha256: str | None = None
    prediction_type: PredictionType | None = None
    null_prompt: NullPrompt | None = None
    null_prompt_prob: float | None = None
    alpha: float | None = None
    guidance_scale: float | None = None
    beta: float | None = None
    resolution: int | None = None
    step: int | None = None
    config_sha256: str | None = None
    dataset_fingerprint: str | None = None
    proxy_cosine: float | None = None
    proxy_relative_error: float | None = None
    dataset_name: str | None = None
    dataset_pairs: int | None = None
    held_out_accuracy: float | None = None
    base_file: str | None = None
    negative: Negative | None = None

    def to_header(self) -> dict[str, str]:
        """The metadata as header entries ``chats.<field>`` → string; what is None is left out."""
        return header_entries(self, PREFIX)

    @classmethod
    def from_header(cls, header: Mapping[str, str], name: str = "the file") -> PairMetadata | None:
        """The metadata in a safetensors header, or None when the file does not call itself a member of a pair.

        Args:
            header: the header's metadata, string to string.
            name: how to call the file in an error.

        Raises:
            PairError: when a ``chats.*`` value is not one this version understands.
        """
        stated = {
            key.removeprefix(PREFIX): value
            for key, value in header.items()
            if key.startswith(PREFIX) and not key.startswith(DISTILLED_PREFIX)
        }
        if not stated:
            return None
        if "member" not in stated:
            raise PairError(
                f"{name} has `chats.*` metadata but no `chats.member`, so it is not known which member of a pair it "
                "is; export it again, or remove the metadata"
            )
        return cls(**parsed_fields(cls, stated, PREFIX, name))

    def recommendation(self) -> str:
        """What the pair's maker recommends for sampling, in a few words; empty when nothing is stated."""
        parts = []
        if self.guidance_scale is not None:
            parts.append(f"cfg {cfg_from_guidance_scale(self.guidance_scale):g} (s = {self.guidance_scale:g})")
        if self.alpha is not None:
            parts.append(f"alpha {self.alpha:g}")
        if self.null_prompt is not None:
            parts.append(f"null prompt: {NULL_PROMPT_WORDS[self.null_prompt]}")
        if self.resolution is not None:
            parts.append(f"{self.resolution} px")
        if self.negative is not None:
            parts.append(f"better negative: {NEGATIVE_WORDS[self.negative]}")
        return ", ".join(parts)

    def origin(self) -> str:
        """What the pair was trained on, in a few words; empty when no data set is stated."""
        if self.dataset_name is None:
            return ""
        pairs = "" if self.dataset_pairs is None else f"{self.dataset_pairs} rated pairs of "
        base = self.base_file or self.base_name
        parts = [f"{pairs}{shown(self.dataset_name)}", *([f"base {shown(base)}"] if base else [])]
        if self.held_out_accuracy is not None:
            parts.append(f"held-out pairs told right: {self.held_out_accuracy:.0%}")
        return ", ".join(parts)


NULL_PROMPT_WORDS = {"encoded_empty": "an empty prompt", "zeros": "zeros (ConditioningZeroOut)"}
NEGATIVE_WORDS: dict[Negative, str] = {
    "dispreferred": "the dispreferred model",
    "base": "the untouched base, at alpha 0",
}


def read_header(path: str | os.PathLike[str]) -> dict[str, str]:
    """The metadata in the header of a safetensors file; no tensor is read, and nothing is ever unpickled.

    Raises:
        PairError: when the file is missing, is not a safetensors file, or is cut off.
    """
    path = Path(path)
    if not path.is_file():
        raise PairError(f"{path.name} is not there; put the file in place or choose another")
    if path.suffix.lower() not in SAFETENSORS_SUFFIXES:
        raise PairError(
            f"{path.name} is a `{path.suffix}` file, which can run code when it is opened; convert it to .safetensors "
            "first"
        )
    try:
        with safe_open(path, framework="pt") as file:
            return dict(file.metadata() or {})
    except SafetensorError as error:
        raise PairError(
            f"{path.name} is not a whole safetensors file ({shown_error(error)}); download or export it again"
        ) from error


def read_metadata(path: str | os.PathLike[str]) -> PairMetadata | None:
    """The pair metadata of one file (see :func:`read_header` for errors), or None when it has none."""
    return PairMetadata.from_header(read_header(path), Path(path).name)


def check_files(
    preferred: str | os.PathLike[str] | None, dispreferred: str | os.PathLike[str] | None
) -> tuple[PairMetadata | None, list[str]]:
    """Whether two files can be sampled as a pair; None for a side that is not a file, as where only one side has a
    LoRA.

    Returns:
        the preferred's metadata (the dispreferred's when only that has any), and warnings, one sentence each.

    Raises:
        PairError: the same file twice, a file that cannot be read, or a member in the other's place.
    """
    stated = {"preferred": preferred, "dispreferred": dispreferred}
    paths = {member: Path(path) for member, path in stated.items() if path is not None}
    found = {member: read_metadata(path) for member, path in paths.items()}
    if len(paths) == 2 and paths["preferred"].samefile(paths["dispreferred"]):
        raise PairError(
            f"`preferred` and `dispreferred` are both {paths['preferred'].name}; choose the two members of a pair"
        )
    for member, metadata in found.items():
        if metadata is not None and metadata.member != member:
            raise PairError(
                f"`{member}` is {paths[member].name}, which is the {metadata.member} member of its pair; choose a "
                f"{member} member there"
            )
    metadata = found.get("preferred") or found.get("dispreferred")
    return metadata, _differences(found["preferred"], found["dispreferred"]) if len(paths) == 2 else []


def _differences(preferred: PairMetadata | None, dispreferred: PairMetadata | None) -> list[str]:
    """Warnings about two members whose metadata disagree."""
    if preferred is None and dispreferred is None:
        return []
    if preferred is None or dispreferred is None:
        silent = "preferred" if preferred is None else "dispreferred"
        return [f"the {silent} file has no pair metadata, the other has; they may not belong together"]
    warnings = []
    if preferred.pair_id != dispreferred.pair_id:
        warnings.append(
            f"the two files are of different pairs ({shown(preferred.pair_id)} and {shown(dispreferred.pair_id)})"
        )
    for name in ("base_sha256", "prediction_type", "step"):
        ours, theirs = getattr(preferred, name), getattr(dispreferred, name)
        if ours != theirs:
            warnings.append(
                f"`{PREFIX}{name}` differs: {shown(ours)} in the preferred file, {shown(theirs)} in the dispreferred"
            )
    return warnings


def write_member(
    path: str | os.PathLike[str],
    tensors: Mapping[str, torch.Tensor],
    metadata: Metadata,
    modelspec: Mapping[str, str] | None = None,
) -> None:
    """Writes one member of a pair, or what was made out of one, whole or not at all; the same tensors and metadata give
    the same bytes.

    Args:
        path: the .safetensors file to write.
        tensors: the weights by key.
        metadata: its ``chats.*`` entries.
        modelspec: further header entries, ``modelspec.*``.

    Raises:
        PairError: when a header key is one that ComfyUI parses as its own, or the name does not end in .safetensors.
    """
    path = Path(path)
    if path.suffix.lower() not in SAFETENSORS_SUFFIXES:
        raise PairError(f"{path.name} must end in .safetensors")
    header = {**(modelspec or {}), **metadata.to_header()}
    if reserved := RESERVED_KEYS.intersection(header):
        raise PairError(
            f"`{sorted(reserved)[0]}` cannot be a metadata key, ComfyUI parses it as its own; choose another name"
        )
    with replacing(path) as temporary:
        save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, temporary, metadata=header)
        _sort_metadata(temporary)


def _sort_metadata(path: Path) -> None:
    """Sorts the metadata of a safetensors file in place: they are written in a random order, and equal members are to
    be equal files."""
    with open(path, "rb+") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        # The same entries in the same notation take the same bytes; the header may end in spaces.
        encoded = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode().ljust(length)
        assert len(encoded) == length
        file.seek(8)
        file.write(encoded)
