"""Whether the trainer comes to the same on a graphics card in shards, offloaded or not, compiled, and when it goes on
from a checkpoint: tiny bases of random weights, one process, one card.

    python -m benchmarks.training_gpu.agreement [--families sd15 sdxl] [--device cpu] [--without-compile]

Prints a table: the distance of all weights after some steps from those of the plain run, relative to how far they
moved (another optimizer goes elsewhere). The plain run is taken twice, which shows what the card itself does not
repeat. "Goes on": a new trainer takes one more step from the checkpoint of the one that goes on in memory, and every
tensor of the state is compared.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from chats_train.runs.checkpoint import RESUME, open_checkpoint
from chats_train.runs.processes import Processes
from chats_train.runs.saving import save_state
from chats_train.settings.config_file import parse_config
from chats_train.sharding.tensors import own, whole
from chats_train.training.trainer import Trainer

from .sides import OFFLOADED, SHARDED

sys.path.append(str(Path(__file__).resolve().parents[2] / "tests" / "train"))

import tiny_pipelines
import tiny_runs

STEPS = 5
SETTINGS = {"lr_warmup_steps": 0, "gradient_checkpointing": True, "validation_pairs": 0}
Column = tuple[dict[str, Any], dict[str, str]]
COLUMNS: dict[str, Column] = {
    "again": ({}, {}),
    "in shards": ({}, SHARDED),
    "in shards, offloaded": ({}, OFFLOADED),
    "adamw8bit": ({"optimizer": "adamw8bit"}, {}),
    "compiled": ({"compile": True}, {}),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--families", nargs="+", default=["sd15", "sdxl", "sd3", "flux"])
    parser.add_argument("--precisions", nargs="+", default=["no", "bf16"])
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--without-compile", action="store_true")
    asked = parser.parse_args()
    columns = {name: column for name, column in COLUMNS.items() if name != "compiled" or not asked.without_compile}
    goes_on = ["plain", *(name for name in columns if name not in ("again", "compiled"))]
    print("| run | moved |", " | ".join(columns), "|", " | ".join(f"goes on: {name}" for name in goes_on), "|")
    print("| --- " * (2 + len(columns) + len(goes_on)) + "|")
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        tiny_runs.write_pairs(folder / "pairs")
        for family in asked.families:
            tiny_pipelines.save_pipeline(family, folder / family)
            for precision in asked.precisions:
                for method in ("full", "lora"):
                    settings = {**SETTINGS, "mixed_precision": precision, "training_method": method}
                    cells = row(folder, family, settings, columns, goes_on)
                    print(f"| {family}, {method}, {precision} |", " | ".join(cells), "|", flush=True)


def row(
    folder: Path, family: str, settings: dict[str, Any], columns: dict[str, Column], goes_on: list[str]
) -> list[str]:
    first, plain, states = outcome(folder, family, settings, {})
    moved = distance(first, plain)
    told = {"plain": states}
    cells = [f"{moved / norm(first):.1e}"]
    for name, (changes, environment) in columns.items():
        try:
            _, other, told[name] = outcome(folder, family, {**settings, **changes}, environment)
            cells.append(f"{distance(plain, other) / moved:.1e}")
        except Exception as error:  # a row is worth having without it
            told[name] = cell = f"{type(error).__name__}: {error}"[:200].replace("\n", " ")
            cells.append(cell)
    return [*cells, *(told[name] for name in goes_on)]


def outcome(
    folder: Path, family: str, settings: dict[str, Any], environment: dict[str, str]
) -> tuple[dict[str, Tensor], dict[str, Tensor], str]:
    """All weights before and after the steps, and what differs where a checkpoint is gone on with."""
    with surroundings(environment):
        raw = tiny_runs.run_settings(family, folder / family, folder / "pairs", folder, **settings)
        config, processes = parse_config(raw), Processes(may_shard=True)
        trainer = tiny_runs.trainer_of(config, processes)
        first = weights(trainer)
        for _ in range(STEPS):
            trainer.train_step()
        after = weights(trainer)
        place = Path(tempfile.mkdtemp(dir=folder))
        save_state(place, trainer.state(), None, processes)
        other = tiny_runs.trainer_of(config, processes)
        found = open_checkpoint(place, "latest", RESUME)
        assert found is not None
        other.load_state(found)
        for each in (trainer, other):
            each.train_step()
        differs = [
            f"{group} {name}"
            for group, tensors in trainer.state().tensors.items()
            for name, value in tensors.items()
            if not torch.equal(own(value), own(other.state().tensors[group][name]))
        ]
    return first, after, f"{len(differs)} differ: {differs[0]}" if differs else "bitwise"


@contextlib.contextmanager
def surroundings(environment: dict[str, str]) -> Iterator[None]:
    """What a launcher would set."""
    os.environ.update(environment)
    try:
        yield
    finally:
        for name in environment:
            del os.environ[name]


def weights(trainer: Trainer) -> dict[str, Tensor]:
    return {name: whole(value).cpu().clone() for name, value in trainer.members.state().items()}


def norm(values: dict[str, Tensor]) -> float:
    return torch.linalg.vector_norm(flat(values)).item()


def distance(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    return torch.linalg.vector_norm(flat(one) - flat(other)).item()


def flat(values: dict[str, Tensor]) -> Tensor:
    return torch.cat([values[name].double().flatten() for name in sorted(values)])


if __name__ == "__main__":
    main()
