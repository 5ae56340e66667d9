"""What a model that was distilled from a pair says of itself in its safetensors header.

Such a model, a LoRA or a whole one, holds the pair's guidance: it is sampled alone at cfg 1, and is no member of any
pair.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from .guidance import Form, cfg_from_guidance_scale
from .headers import FORMAT_VERSION, header_entries, parsed_fields
from .pair import DISTILLED_PREFIX, Member, NullPrompt, PredictionType, read_header
from .words import shown

USAGE = "cfg 1, no pair needed"
File = str | os.PathLike[str] | None


@dataclass(frozen=True)
class DistilledMetadata:
    """The ``chats.distilled.*`` keys; a field that the file does not state is None.

    ``cfg`` is what to sample with. Made of: the pair (``pair_id``, the ``pair_name`` of its files, ``pair_step`` of its
    training) as it was sampled with ``form``, ``negative`` (the model that the guidance leads away from: `dispreferred`
    or `base`), ``guidance_scale`` (the paper's s), ``alpha``, ``null_prompt``, and guidance from ``start_percent`` to
    ``end_percent`` of the noise schedule alone. ``step`` are the optimizer steps of the distillation, ``resolution`` is
    in pixels, the ``*_sha256`` are hexadecimal digests.
    """

    cfg: int = 1
    format_version: int = FORMAT_VERSION
    pair_id: str | None = None
    pair_name: str | None = None
    pair_step: int | None = None
    form: Form | None = None
    negative: str | None = None
    guidance_scale: float | None = None
    alpha: float | None = None
    null_prompt: NullPrompt | None = None
    start_percent: float | None = None
    end_percent: float | None = None
    base_name: str | None = None
    base_sha256: str | None = None
    prediction_type: PredictionType | None = None
    resolution: int | None = None
    step: int | None = None
    settings_sha256: str | None = None
    dataset_fingerprint: str | None = None

    def to_header(self) -> dict[str, str]:
        """The metadata as header entries ``chats.distilled.<field>`` → string; what is None is left out."""
        return header_entries(self, DISTILLED_PREFIX)

    @classmethod
    def from_header(cls, header: Mapping[str, str], name: str = "the file") -> DistilledMetadata | None:
        """The metadata in a safetensors header, or None when the file does not call itself distilled.

        Raises:
            PairError: when a ``chats.distilled.*`` value is not one this version understands.
        """
        stated = {
            key.removeprefix(DISTILLED_PREFIX): value
            for key, value in header.items()
            if key.startswith(DISTILLED_PREFIX)
        }
        return cls(**parsed_fields(cls, stated, DISTILLED_PREFIX, name)) if stated else None

    def origin(self) -> str:
        """What it was made of, in a few words."""
        pair = self.pair_name or self.pair_id
        parts = [f"the pair {shown(pair)}" if pair else "a pair"]
        if self.form is not None:
            parts.append(f"form {self.form}")
        if self.guidance_scale is not None:
            parts.append(f"cfg {cfg_from_guidance_scale(self.guidance_scale):g} (s = {self.guidance_scale:g})")
        if self.alpha is not None:
            parts.append(f"alpha {self.alpha:g}")
        if self.negative == "base":
            parts.append("the base as the negative")
        if self.start_percent or (self.end_percent is not None and self.end_percent < 1):
            parts.append(f"guided from {self.start_percent or 0:g} to {self.end_percent or 1:g} of the noise schedule")
        return ", ".join(parts)


def distilled_members(preferred: File, dispreferred: File) -> dict[Member, str]:
    """A warning for each of two files that is used as a member of a pair and was distilled from one; None for a side
    that is not a file.

    Raises:
        PairError: when a file cannot be read.
    """
    sides: tuple[tuple[Member, File], ...] = (("preferred", preferred), ("dispreferred", dispreferred))
    return {
        member: f"the {member} file was distilled from a pair: {USAGE}, load it alone"
        for member, path in sides
        if path is not None and DistilledMetadata.from_header(read_header(path), Path(path).name) is not None
    }
