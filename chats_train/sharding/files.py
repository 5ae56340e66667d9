"""Tensors in shards as files, by torch's distributed checkpoint: each process writes its own parts, as safetensors, and
any number of processes reads them."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from ..support.errors import UserError
from .tensors import in_shards, own, own_rows

# For a tensor's name and its whole shape, what it is to lie in shards like; None for whole.
Like = Callable[[str, torch.Size], DTensor | None]


def write_parts(folder: Path, tensors: Mapping[str, Tensor]) -> None:
    """Writes tensors, of those in shards each process its part; all processes are to call it.

    Raises:
        UserError: in every process when one could not.
    """
    import torch.distributed.checkpoint as dcp

    writer = dcp.HuggingFaceStorageWriter(str(folder), save_distributed=True)
    try:
        dcp.save(dict(tensors), storage_writer=writer)
    except dcp.CheckpointException as error:
        index, failure = next(iter(error.failures.items()))
        raise UserError(
            f"{folder} could not be written (process {index}: {failure[0]}); mend that, and go on from the last "
            "checkpoint"
        ) from error


def parts_of(folder: Path, index: int) -> list[Path]:
    """The files that a process wrote."""
    return sorted(folder.glob(f"shard-{index + 1:05d}-*"))


def read_parts(folder: Path, like: Like) -> dict[str, Tensor]:
    """Tensors that :func:`write_parts` wrote, by however many processes; no process waits for another.

    Raises:
        UserError: where this torch cannot.
    """
    import torch.distributed.checkpoint as dcp

    if not hasattr(dcp, "HuggingFaceStorageReader"):
        raise UserError(f"{folder} is in shards, which torch {torch.__version__} does not read; `pip install -U torch`")
    from torch.distributed.checkpoint.metadata import TensorStorageMetadata

    reader = dcp.HuggingFaceStorageReader(str(folder))
    tensors: dict[str, Tensor] = {}
    for name, stated in reader.read_metadata().state_dict_metadata.items():
        assert isinstance(stated, TensorStorageMetadata), f"{name} is no tensor"
        shape, dtype = torch.Size(stated.size), stated.properties.dtype
        cut = like(name, shape)
        tensors[name] = torch.empty(shape, dtype=dtype) if cut is None else torch.empty_like(cut.detach(), dtype=dtype)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled")  # one process reads alone
        dcp.load(tensors, storage_reader=reader, no_dist=True)
    return tensors


def take_parts(tensors: Mapping[str, Tensor], like: Like) -> dict[str, Tensor]:
    """Whole tensors as what of them is this process's."""
    taken = {}
    for name, value in tensors.items():
        cut = like(name, value.shape)
        taken[name] = value if cut is None else in_shards(own_rows(value, cut).to(own(cut).device, copy=True), cut)
    return taken


def all_whole(name: str, shape: torch.Size) -> None:
    """Every tensor whole."""
