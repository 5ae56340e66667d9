"""Saving a run's state: by the main process where every process has all of it, else by all, each its part."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch
from torch.distributed.tensor import DTensor

from ..sharding.files import parts_of, write_parts
from .checkpoint import PREFIX, Files, State, described, is_whole, publish, rotate, save_checkpoint
from .processes import Processes


def save_state(folder: Path, state: State, keep: int | None, processes: Processes) -> None:
    """Writes a checkpoint below ``folder``, as :func:`.checkpoint.save_checkpoint` does; all processes are to call it,
    and none goes on before it is there."""
    if any(isinstance(tensor, DTensor) for tensors in state.tensors.values() for tensor in tensors.values()):
        _save_parts(folder, state, keep, processes)
    elif processes.is_main:
        save_checkpoint(folder, state, keep)
    processes.wait()


def _save_parts(folder: Path, state: State, keep: int | None, processes: Processes) -> None:
    target = folder / f"{PREFIX}{state.step:08d}"
    if processes.any(processes.is_main and is_whole(target)):
        return
    temporary = folder / f".{target.name}.{processes.one_number():012x}.tmp"
    if processes.is_main:
        temporary.mkdir(parents=True)
    processes.wait()
    try:
        for group, tensors in state.tensors.items():
            write_parts(temporary / group, tensors)
        own = [path for group in state.tensors for path in parts_of(temporary / group, processes.index)]
        stated: list[Files] = [{} for _ in range(processes.count)]
        torch.distributed.all_gather_object(stated, described(temporary, own))
        if processes.is_main:
            publish(temporary, target, state, {name: file for files in stated for name, file in files.items()})
            rotate(folder, keep)
    finally:
        if processes.is_main:
            shutil.rmtree(temporary, ignore_errors=True)
