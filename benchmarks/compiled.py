"""How far steps with `compile: true` are from those without, beside how far those are from each other when only the
order of sums changes: on two threads, and with a pass for each side.

Two tables. In the first all ways compute their gradient at the same weights, along the plain steps: its distance, and
that of its direction alone. A pair's errors are about 1 and its gradient's length follows from beta times their
difference: in fp32 the last bit of an error, 6e-8, moves the length by up to beta times as much. In the second table
each goes its own way, the gradient cut to a norm as in training; AdamW divides by the size of a gradient that it knows
from few steps, so that where one is next to nothing its rounding decides. Distances are L2, relative to the plain
run's.

    python -m benchmarks.compiled [--layout tiny|half] [--pixels N] [--method lora|full]
"""

from __future__ import annotations

import argparse
import gc
import math
import os
import platform
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from chats_train.encodings.cache import CachedEncodings
from chats_train.runs.processes import Processes
from chats_train.training.trainer import Trainer, micro_batches

from .training.sides import Setting, opened, prepare

STEPS = 5
PLAIN, COMPILED, THREADS, SIDES = "plain", "compiled", "on two threads", "a pass for each side"
WAYS = (COMPILED, THREADS, SIDES)
Vector = dict[str, Tensor]


@contextmanager
def going(way: str, trainer: Trainer) -> Iterator[None]:
    """One way of computing a step of a trainer, whose members are compiled."""
    one_graph = trainer.members.one_graph
    torch.set_num_threads(2 if way == THREADS else 1)
    trainer.members.one_graph = one_graph or way == SIDES
    try:
        with torch.compiler.set_stance("default" if way == COMPILED else "force_eager"):
            yield
    finally:
        torch.set_num_threads(1)
        trainer.members.one_graph = one_graph


def made(setting: Setting, method: str) -> Trainer:
    settings = {"training_method": method, "compile": True, "gradient_checkpointing": False, "lr_warmup_steps": 0}
    config, family, dataset = opened(setting, settings)
    return Trainer(config, family, dataset, CachedEncodings(config.cache_dir, family.fingerprint), Processes())


def gradient(trainer: Trainer) -> Vector:
    """That of the next step, before it is cut; no step is taken."""
    trainer.optimizer.zero_grad()
    picked = [(epoch, trainer.samples[row]) for epoch, row in trainer.order.step(trainer.step, trainer.pairs_per_step)]
    for micro in micro_batches(picked, trainer.config.train_batch_size):
        trainer.gradients.backward(trainer._batch(micro), 1 / len(picked))
    return gradients_of(trainer)


def gradients_of(trainer: Trainer) -> Vector:
    return {name: each.grad.clone() for name, each in trainer.parameters.items() if each.grad is not None}


def weights_of(trainer: Trainer) -> Vector:
    return {name: each.detach().clone() for name, each in trainer.parameters.items()}


def norm(vector: Vector, other: Vector | None = None) -> float:
    """Of a vector, or of its difference to another."""
    parts = (each if other is None else each - other[name] for name, each in vector.items())
    return math.sqrt(sum(part.double().square().sum().item() for part in parts))


def at_the_same_weights(setting: Setting, method: str) -> dict[str, list[float]]:
    """By way, of each step the distance of its gradient, and that of its direction."""
    trainer = made(setting, method)
    found: dict[str, list[float]] = {way: [] for way in WAYS}
    for _ in range(STEPS):
        with going(PLAIN, trainer):
            plain = gradient(trainer)
        for way in WAYS:
            with going(way, trainer):
                other = gradient(trainer)
            found[way].append(norm(plain, other) / norm(plain))
            ratio = norm(plain) / norm(other)
            found[way].append(norm(plain, {name: each.mul_(ratio) for name, each in other.items()}) / norm(plain))
            del other
        with going(PLAIN, trainer):
            trainer.train_step()
    return found


def on_their_own(setting: Setting, method: str, kept: Path) -> dict[str, list[float]]:
    """By way, the distance of each step's gradient, then that of the last weights: to their norm, and to how far they
    moved."""
    found: dict[str, list[float]] = {}
    for way in (PLAIN, *WAYS):
        trainer = made(setting, method)
        first = weights_of(trainer) if way == PLAIN else {}
        distances = []
        for step in range(STEPS):
            with going(way, trainer):
                trainer.train_step()
            if way == PLAIN:
                save_file(gradients_of(trainer), kept / f"{step}.safetensors")
                continue
            plain = load_file(kept / f"{step}.safetensors")
            distances.append(norm(plain, gradients_of(trainer)) / norm(plain))
            del plain
        weights = weights_of(trainer)
        del trainer
        gc.collect()
        if way == PLAIN:
            save_file(weights, kept / "weights.safetensors")
            sizes = norm(weights), norm(weights, first)
            continue
        apart = norm(load_file(kept / "weights.safetensors"), weights)
        found[way] = [*distances, *(apart / size for size in sizes)]
    return found


def table(head: str, found: dict[str, list[float]], columns: list[str]) -> list[str]:
    lines = [f"| {' | '.join([head, *columns])} |", f"| {' | '.join(['---'] * (len(columns) + 1))} |"]
    return lines + [f"| {way} | {' | '.join(f'{each:.1e}' for each in row)} |" for way, row in found.items()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layout", choices=("tiny", "half"), default="half")
    parser.add_argument("--pixels", type=int, default=128)
    parser.add_argument("--method", choices=("lora", "full"), default="lora")
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "chats-compiled")
    args = parser.parse_args()
    setting = Setting(args.folder, args.layout, args.pixels, STEPS + 1, 1, ())
    kept = args.folder / "plain"
    kept.mkdir(parents=True, exist_ok=True)
    prepare(setting)
    steps = [f"gradient, step {step + 1}" for step in range(STEPS)]
    directions = [name for step in steps for name in (step, "its direction")]
    same = at_the_same_weights(setting, args.method)
    own = on_their_own(setting, args.method, kept)
    shutil.rmtree(kept)
    print(
        f"`python -m benchmarks.compiled --layout {args.layout} --pixels {args.pixels} --method {args.method}`, "
        f"{time.strftime('%Y-%m-%d')}, {platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}\n"
    )
    print("\n".join([*table("at the same weights", same, directions), ""]))
    columns = [*steps, "weights, to their norm", "weights, to their moves"]
    print("\n".join(table("each on its own", own, columns)))


if __name__ == "__main__":
    main()
