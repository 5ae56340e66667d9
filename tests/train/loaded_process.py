"""Processes of the trainer, forked from one that has loaded its packages: to load them takes longer than a tiny run."""

import multiprocessing
import os
import socket
import sys
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path

import torch

from chats_train.cli import main

# Windows cannot fork: there, each process loads for itself.
CONTEXT = multiprocessing.get_context("spawn" if os.name == "nt" else "forkserver")
CONTEXT.set_forkserver_preload(
    [
        "loaded_process",
        "diffusers.models.autoencoders",
        "diffusers.models.unets",
        "matplotlib.figure",
        "pandas",
        "peft",
        "torch.distributed.checkpoint",
        "torch.distributed.fsdp",
        "transformers.models.clip.modeling_clip",
        "chats_train.training.train",
    ]
)


def start(log: Path, function: Callable[..., object], *arguments: object, **environment: str) -> BaseProcess:
    """A process of its own that calls a module's function, in this process's number of threads; what it prints goes to
    ``log``, and an integer that is returned is its exit status."""
    told = (log, torch.get_num_threads(), environment, function, arguments)
    process = CONTEXT.Process(target=_call, args=told, daemon=True)  # a test that fails leaves none behind
    process.start()
    return process


def start_joined(logs: list[Path], function: Callable[..., object], *arguments: object) -> list[BaseProcess]:
    """Processes as torchrun would start them, one for each log."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    joined = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(len(logs))}
    return [
        start(log, function, *arguments, **joined, RANK=str(rank), LOCAL_RANK=str(rank))
        for rank, log in enumerate(logs)
    ]


def start_trainer(log: Path, *arguments: object) -> BaseProcess:
    """`python -m chats_train` with these arguments."""
    return start(log, main, [str(argument) for argument in arguments])


def _call(log: Path, threads: int, environment: dict[str, str], function: Callable[..., object], arguments) -> None:
    with log.open("wb", buffering=0) as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    os.environ.update(environment)
    torch.set_num_threads(threads)
    sys.exit(function(*arguments))
