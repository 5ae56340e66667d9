"""From whole members to LoRAs: the preferred model and a LoRA that leads from it to the dispreferred, or a base and two
LoRAs.

Models are read one weight at a time, so that memory holds a few layers and the LoRAs, never a model. A file is written
whole or not at all, with a table beside it that says of every weight how much of its difference the LoRA carries.
"""

from __future__ import annotations

import ctypes
import math
import sys
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from chats.files import write_text
from chats.lowrank.truncation import factorize, relative_error, weight_difference
from chats.pair import Member, PairError, PairMetadata, check_files, read_header, write_member
from chats.words import shown

from ..layouts.carriers import Carrier, carriers
from ..runs.pair_files import check_equal, modelspec
from ..settings.facts import FAMILIES
from ..support.dtypes import TORCH_DTYPES
from ..support.errors import UserError
from .denoiser_file import DenoiserFile
from .table import NOT_CARRIED, Layer, table_text


@dataclass(frozen=True)
class Truncation:
    """How far factors are cut, and the precision that they are stored in: fp16, bf16 or fp32."""

    rank: int | None
    energy: float | None
    dtype: str = "fp16"

    def check(self) -> None:
        """Raises UserError for settings that name no truncation."""
        if self.rank is None and self.energy is None:
            raise UserError(
                "neither `--rank` nor `--energy` is given; choose a rank, such as 64, or a share of the energy, such "
                "as 0.99"
            )
        if self.rank is not None and self.rank < 1:
            raise UserError(f"`--rank` is {self.rank}; give 1 or more, such as 64")
        if self.energy is not None and not 0 < self.energy <= 1:
            raise UserError(f"`--energy` is {self.energy:g}; give a share above 0 and up to 1, such as 0.99")

    def words(self) -> list[str]:
        """What is set: `energy 0.99`, `rank 64`."""
        return [
            f"{name} {value}" for name, value in (("energy", self.energy), ("rank", self.rank)) if value is not None
        ]


@dataclass(frozen=True)
class ExtractedLora:
    """One LoRA: its file, the member that it makes of ``origin``, and a row for every weight that differs."""

    member: Member
    origin: DenoiserFile
    target: DenoiserFile
    path: Path
    metadata: PairMetadata
    modelspec: dict[str, str]
    layers: list[Layer]
    tensors: dict[str, Tensor]

    @property
    def table(self) -> Path:
        return self.path.with_suffix(".csv")


def return_large_blocks() -> None:
    """Has this process give large blocks of memory back when they are freed; nothing to do where malloc is not glibc's.

    glibc comes to keep freed blocks of up to 32 MB in its heap. Among them the small tensors of the LoRA stay, and the
    holes between fit no other layer: measured, some 10 MB more for each layer of 4 MB.
    """
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "mallopt"):
        m_mmap_threshold = -3
        libc.mallopt(m_mmap_threshold, 1 << 20)


def extract(
    preferred: Path, dispreferred: Path, base: Path | None, truncation: Truncation, output: Path, progress: bool = True
) -> tuple[list[ExtractedLora], list[str]]:
    """Writes the dispreferred as a LoRA on the preferred, or with ``base`` both members as LoRAs on that.

    Args:
        preferred, dispreferred, base: whole models in any layout that :class:`DenoiserFile` reads.
        truncation: how far the factors are cut.
        output: the folder to write to.

    Returns:
        the LoRAs written, without those that were there already, and warnings, one sentence each.

    Raises:
        PairError, UserError: files that are no pair or not of one architecture, no difference, or an output that is
            there already.
    """
    truncation.check()
    _, warnings = check_files(preferred, dispreferred)
    if base is not None:
        _check_base(base, preferred, dispreferred)
    files: dict[Member, DenoiserFile] = {
        "preferred": DenoiserFile(preferred, "preferred"),
        "dispreferred": DenoiserFile(dispreferred, "dispreferred"),
    }
    origin = DenoiserFile(base, "base") if base is not None else files["preferred"]
    for file in files.values():
        _require_same_shapes(origin, file)
    members: Sequence[Member] = ("preferred", "dispreferred") if base is not None else ("dispreferred",)
    loras = [_plan(member, files, origin, truncation, output) for member in members]
    loras = [lora for lora in loras if not _is_there(lora)]
    if loras:
        _fill(loras, origin, truncation, progress)
        _write(loras)
    return loras, warnings


def _check_base(base: Path, preferred: Path, dispreferred: Path) -> None:
    read_header(base)
    for setting, path in (("preferred", preferred), ("dispreferred", dispreferred)):
        if base.samefile(path):
            raise UserError(
                f"`base` and `{setting}` are both {path.name}; leave `--base` out for a LoRA on the preferred model "
                "itself"
            )


def _require_same_shapes(origin: DenoiserFile, file: DenoiserFile) -> None:
    if origin.shapes == file.shapes:
        return
    first = min(
        key for key in origin.shapes.keys() | file.shapes.keys() if origin.shapes.get(key) != file.shapes.get(key)
    )
    found = [f"{list(shapes[first])}" if first in shapes else "missing" for shapes in (origin.shapes, file.shapes)]
    raise UserError(
        f"`{origin.setting}` is {origin} and `{file.setting}` is {file}: `{shown(first)}` is {found[0]} in "
        f"the one and {found[1]} in the other; "
        "give models of one architecture"
    )


def _plan(
    member: Member, files: dict[Member, DenoiserFile], origin: DenoiserFile, truncation: Truncation, output: Path
) -> ExtractedLora:
    """A LoRA without its contents."""
    target = files[member]
    stem = target.path.stem.removesuffix(f"_{member}")
    path = output / f"{stem}_{member}_lora_{'_'.join(truncation.words()).replace(' ', '')}.safetensors"
    metadata = _metadata(member, files, origin)
    family = origin.kind.family if origin.kind else None
    known = FAMILIES[family].architecture if family else None
    architecture = target.header.get("modelspec.architecture") or known
    spec = modelspec(architecture and f"{architecture}/lora", path.stem, metadata)
    # All that the contents depend on: equal words mean an equal file.
    spec["modelspec.description"] = (
        f"{target.path.name} (sha256 {target.digest}) minus {origin.path.name} (sha256 {origin.digest}), "
        f"{', '.join(truncation.words())}, {truncation.dtype}"
    )
    return ExtractedLora(member, origin, target, path, metadata, spec, [], {})


def _metadata(member: Member, files: dict[Member, DenoiserFile], origin: DenoiserFile) -> PairMetadata:
    """What the member's file says of itself, or the other's, on another base; the same pair for the same two files."""
    found = {name: PairMetadata.from_header(file.header, file.path.name) for name, file in files.items()}
    ids = {stated.pair_id for stated in found.values() if stated is not None}
    if len(ids) == 1 and None not in ids:
        (pair_id,) = ids
    else:
        pair_id = uuid.uuid5(uuid.NAMESPACE_URL, f"{files['preferred'].digest} {files['dispreferred'].digest}").hex
    own = found[member] or found["preferred"] or found["dispreferred"] or PairMetadata(member)
    return replace(own, member=member, pair_id=pair_id, base_name=origin.path.name, base_sha256=origin.digest)


def _is_there(lora: ExtractedLora) -> bool:
    """Whether the very LoRA is there already; UserError for any other file in its place or in its table's."""
    if lora.path.exists() and _header(lora.path) == {**lora.modelspec, **lora.metadata.to_header()}:
        return True
    for path in (lora.path, lora.table):
        if path.exists():
            raise UserError(
                f"{path} is there already and is another file; remove it, or choose another folder with `--output`"
            )
    return False


def _header(path: Path) -> dict[str, str] | None:
    try:
        return read_header(path)
    except PairError:
        return None


def _fill(loras: list[ExtractedLora], origin: DenoiserFile, truncation: Truncation, progress: bool) -> None:
    """Reads all weights once, in turn, and puts rows and tensors into the LoRAs."""
    for key, carrier in tqdm(carriers(origin.shapes).items(), "extracting", unit="weight", disable=not progress):
        weight = origin.read(key)
        size = _norm(weight)
        for lora in loras:
            difference = weight_difference(weight, lora.target.read(key))
            norm = _norm(difference)
            if not math.isfinite(norm):
                raise UserError(
                    f"`{shown(key)}` has NaN or infinite numbers in {origin.path.name} or {lora.target.path.name}; "
                    "give undamaged files"
                )
            if norm == 0:
                continue
            carried = _carry(key, carrier if origin.is_floating(key) else None, difference, truncation)
            lora.tensors.update(carried.tensors)
            change = norm / size if size else math.inf
            errors = (carried.rank, carried.retained_energy, carried.relative_error)
            lora.layers.append(Layer(key, carried.form, tuple(weight.shape), *errors, change, norm))
    for lora in loras:
        if not lora.layers:
            raise UserError(
                f"`{lora.target.setting}` is {lora.target}, whose weights are those of {origin.path.name}; nothing to "
                "extract"
            )


def _norm(tensor: Tensor) -> float:
    return torch.linalg.vector_norm(tensor, dtype=torch.float64).item()


@dataclass(frozen=True)
class Carried:
    """What goes into the file for one weight, and how true it is; a rank of 0 means no factors."""

    form: str = NOT_CARRIED
    tensors: Mapping[str, Tensor] = field(default_factory=dict)
    rank: int = 0
    retained_energy: float = 0.0
    relative_error: float = 1.0


def _carry(key: str, carrier: Carrier | None, difference: Tensor, truncation: Truncation) -> Carried:
    """A difference (float64, not zero) as the tensors of its carrier."""
    if carrier is None:
        return Carried()
    if carrier.form == "difference":
        # Biases and norms are small, and move by less than half precision resolves: kept in single.
        stored = difference.float()
        return Carried(carrier.form, {carrier.name: stored}, 0, 1.0, _norm(stored - difference) / _norm(difference))
    factors = factorize(difference, truncation.rank, truncation.energy)
    assert factors is not None
    # As LoRA files hold a convolution's.
    pointwise = factors.up.reshape(*factors.up.shape, *[1] * (difference.ndim - 2))
    up, down = (factor.to(TORCH_DTYPES[truncation.dtype]).contiguous() for factor in (pointwise, factors.down))
    error = relative_error(difference, up, down)
    if not math.isfinite(error):
        raise UserError(
            f"`--dtype` is {truncation.dtype}, which the factors of `{shown(key)}` overflow; use bf16 or fp32"
        )
    # The scale is alpha / rank = 1.
    alpha = torch.tensor(float(factors.rank))
    tensors = {
        f"{carrier.name}.lora_up.weight": up,
        f"{carrier.name}.lora_down.weight": down,
        f"{carrier.name}.alpha": alpha,
    }
    return Carried(carrier.form, tensors, factors.rank, factors.retained_energy, error)


def _write(loras: list[ExtractedLora]) -> None:
    """All files, or after an error none of them; none of them was there before."""
    begun: list[Path] = []
    try:
        for lora in loras:
            begun += [lora.table, lora.path]
            write_text(lora.table, table_text(lora.layers))
            write_member(lora.path, lora.tensors, lora.metadata, lora.modelspec)
            check_equal(lora.path, lora.tensors)
    except BaseException:
        for path in begun:
            path.unlink(missing_ok=True)
        raise
