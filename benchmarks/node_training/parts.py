"""The parts of the benchmark, each of which prints its row; run in a process of its own, which is a session of ComfyUI.

A part that fails says so in its row, and those after it are run.
"""

from __future__ import annotations

import asyncio
import functools
import json
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import comfy.memory_management
import conftest
import folder_paths
import torch
from conftest import pack_module
from mini import relative_error
from running import guider_of, reference_of, result, run
from safetensors.torch import load_file

from . import models
from .comfyui import GIB, Memory, machine
from .watch import Checked, Watch, as_chosen

DATASET, CFG, ALPHA, ROUNDS = "benchmark", 6.0, 0.5, 2
# How the linear layers are called that attention begins and ends with.
LOST = {"into": (".to_q", ".to_k", ".to_v", ".qkv"), "out of": (".to_out.0", ".attention.out")}


@dataclass(frozen=True)
class Task:
    """What one process does.

    Attributes:
        kind: of the model, see :mod:`.models`.
        parts: by name, see ``PARTS``.
        scratch: where models, data and runs are; shared with the other tasks.
        pixels: of a side of the pictures.
        steps: of a whole run; a run is stopped after half of them.
        sampled: steps of a picture.
        free_gib: what is left free on the graphics card, for all of ComfyUI; None for all that there is.
        precision: of the weights, see :mod:`.models`.
        alike: whether each training begins with passes that are compared.
        check: whether each run checks the gradient.
    """

    kind: str
    parts: tuple[str, ...]
    scratch: str
    pixels: int
    steps: int
    sampled: int
    cpu: bool
    free_gib: float | None = None
    precision: str = "bf16"
    alike: bool = True
    check: bool = True


class Bench:
    """The session that the parts of a task share."""

    def __init__(self, task: Task, write: Callable[[dict[str, Any]], None]):
        self.task, self.write = task, write
        self.scratch = Path(task.scratch)
        self.file = self.scratch / f"{task.kind}.safetensors"
        self.memory = Memory(task.free_gib)
        folder_paths.output_directory = str(self.scratch / "output")
        folder_paths.folder_names_and_paths["loras"] = ([str(self.scratch / "loras")], {".safetensors"})
        (self.scratch / "loras").mkdir(parents=True, exist_ok=True)
        classes = asyncio.run(asyncio.run(conftest.load_pack().comfy_entrypoint()).get_node_list())
        self.nodes = {node.GET_SCHEMA().node_id: functools.partial(result, node) for node in classes}
        self.given: dict[str, Any] = {}

    @property
    def dataset(self) -> Path:
        return self.scratch / "output" / "chats" / f"{DATASET} {self.task.kind}"

    def models(self) -> dict[str, Any]:
        if not self.given:
            self.given = models.connected(self.task.kind, self.file, self.task.precision, self.task.cpu)
            if not self.dataset.is_dir():
                models.rate(self.dataset, self.task.pixels)
        return self.given

    def row(self, part: str, **told: Any) -> None:
        free = {} if self.task.free_gib is None else {"free_gib": self.task.free_gib}
        self.write({"kind": self.task.kind, "part": part, "precision": self.task.precision, **free, **told})

    def train(
        self, name: str, steps: int, passes: bool = False, repeatable: bool = True, check: bool | str = True
    ) -> tuple[dict[str, Any], tuple]:
        """A go of the node: what was seen of it, and its outputs."""
        watch, given = Watch(self.memory, self.task.alike, passes, self.task.check and check), self.models()
        settings = dict(rank=16, layers="attention", steps=steps, learning_rate=1e-4, accumulate=1, beta=1000.0)
        settings |= dict(null_prompt_prob=0.5, resolution=self.task.pixels, seed=1, minutes=0, preview_every=0)
        self.memory.begin()
        outputs, told, started = (), {}, time.perf_counter()
        with as_chosen(repeatable), watch.installed(), torch.inference_mode():
            try:
                outputs = self.nodes["CHATSTrainLoRAPair"](
                    **given, dataset=self.dataset.name, name=f"{self.task.kind} {name}", **settings
                )
            except Checked:
                pass
            except ValueError as error:
                told["refused"] = str(error)
        return {"seconds": round(time.perf_counter() - started, 1), **watch.row(), **told}, outputs

    def difference(self, name: str, other: str) -> dict[str, Any]:
        """Of the states of two runs: how many tensors differ, and by how much of the largest of their numbers."""
        ours, theirs = (
            load_file(self.dataset / "runs" / f"{self.task.kind} {each}" / "state.safetensors")
            for each in (name, other)
        )
        differing = [key for key, value in ours.items() if not torch.equal(value, theirs[key])]
        moved = [key for key in ours if key.startswith("weights.") and key.endswith(".up")]
        largest = max(ours[key].abs().max().item() for key in moved)
        most = max((ours[key] - theirs[key]).abs().max().item() for key in moved)
        return {"tensors": len(ours), "differ": len(differing), "most_of_largest": most / largest}


def make(bench: Bench) -> None:
    device = "cpu" if bench.task.cpu else "cuda"
    started = time.perf_counter()
    parameters = models.make(bench.task.kind, bench.file, device)
    bench.row("make", parameters=parameters, seconds=round(time.perf_counter() - started, 1), **machine())


def whole(bench: Bench) -> None:
    """An unbroken run, with all that should be as before after it; then its pair in use."""
    given, digest = bench.models(), pack_module("nodes.training.digests").model_digest
    positive, null = (given["clip"].encode_from_tokens_scheduled(text) for text in ("a fresh prompt", ""))
    with torch.inference_mode():
        digests = [digest(given["model"])]
        base = guider_of(given["model"], positive, null, CFG)
        # The first of a process is another than all that follow, without this pack too.
        cold, *before = (sample(bench, base, 2) for _ in range(3))
        digests.append(digest(given["model"]))
    told, outputs = bench.train("whole", bench.task.steps, passes=True)
    bench.row("whole", **told, allocated_afterwards_gib=bench.memory.now())
    with torch.inference_mode():
        digests.append(digest(given["model"]))
        after = [sample(bench, guider_of(given["model"], positive, null, CFG), 2) for _ in range(2)]
    bench.row(
        "base afterwards",
        dynamic=bool(getattr(given["model"], "is_dynamic", bool)()),
        samples_repeat=torch.equal(*before),
        first_sample_too=torch.equal(cold, before[0]),
        sample_unchanged=torch.equal(before[1], after[1]),
        first_sample_unchanged=torch.equal(cold, after[0]),
        digest_unchanged=len(set(digests)) == 1,
        finite=bool(torch.isfinite(after[1]).all()),
    )
    if outputs:
        in_use(bench, base, outputs[:2], positive, null)


def again(bench: Bench) -> None:
    told, _ = bench.train("again", bench.task.steps)
    bench.row("again", **told, difference=bench.difference("whole", "again"))


def first_half(bench: Bench) -> None:
    bench.row("first half", **bench.train("halves", bench.task.steps // 2)[0])


def second_half(bench: Bench) -> None:
    """In a process after that of the first."""
    told, _ = bench.train("halves", bench.task.steps)
    bench.row("second half", **told, difference=bench.difference("whole", "halves"))


def unbroken(bench: Bench) -> None:
    """An unbroken run, and nothing else."""
    bench.row("unbroken", **bench.train("whole", bench.task.steps)[0])


def gradient(bench: Bench) -> None:
    """The check of the gradient alone."""
    bench.row("gradient", pixels=bench.task.pixels, **bench.train("gradient", 1, check="alone")[0])


def lost_paths(bench: Bench) -> None:
    """The check, where the gradient loses a path: it is to refuse both. By what goes into each attention, every layer
    has a gradient, and that of the first ones lacks the path; by what comes out of it, its layers have none."""
    network = bench.models()["model"].model.diffusion_model
    for what, ends in LOST.items():
        found = [module for name, module in network.named_modules() if name.endswith(ends)]
        assert found
        hooks = [module.register_forward_pre_hook(_detached) for module in found]
        try:
            told, _ = bench.train(f"lost {what}", 1, check="alone")
        finally:
            for hook in hooks:
                hook.remove()
        bench.row(f"lost path, {what} attention", **told)


def _detached(module: Any, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    return tuple(each.detach() for each in inputs)


def choices(bench: Bench) -> None:
    """What repeatable sums cost: two runs with torch's own choice of kernels."""
    for count in (1, 2):
        told, _ = bench.train(f"as torch {count}", max(2, bench.task.steps // 4), repeatable=False)
    bench.row("as torch chooses", **told, difference=bench.difference("as torch 1", "as torch 2"))


def little_memory(bench: Bench) -> None:
    told, _ = bench.train(f"free {bench.task.free_gib:g}", max(2, bench.task.steps // 4))
    bench.row("little memory", **told)


PARTS = {
    "make": make,
    "whole": whole,
    "again": again,
    "first half": first_half,
    "second half": second_half,
    "unbroken": unbroken,
    "gradient": gradient,
    "lost paths": lost_paths,
    "choices": choices,
    "little memory": little_memory,
}


def sample(bench: Bench, guider: Any, steps: int, ticks: list[float] | None = None) -> torch.Tensor:
    """The final latents of one picture; the time of each step is added to ``ticks``."""
    side = bench.task.pixels // 8
    latent = {"samples": torch.zeros(1, models.KINDS[bench.task.kind].channels, side, side)}

    def tick(*_: Any) -> None:
        bench.memory.synchronize()
        if ticks is not None:
            ticks.append(time.perf_counter())

    return run(guider, latent, steps=steps, callback=tick).cpu().clone()


def in_use(bench: Bench, base: Any, members: tuple, positive: list, null: list) -> None:
    """Seconds a step of stock CFG and of the pair, in turn, and how far the pair is from the formula."""
    with torch.inference_mode():
        (joined,) = bench.nodes["CHATSApply"](*members, 0.0, 1.0)
        (negative,) = bench.nodes["CHATSProxyPrompt"](positive, null, ALPHA, "proxy")
        sides = {"stock CFG": base, "the pair": guider_of(joined, positive, negative, CFG)}
        seconds: dict[str, list[float]] = {name: [] for name in sides}
        for _ in range(ROUNDS):
            for name, guider in sides.items():
                ticks: list[float] = []
                sample(bench, guider, bench.task.sampled, ticks)
                seconds[name].append((ticks[-1] - ticks[0]) / (len(ticks) - 1))
        best = {name: min(values) for name, values in seconds.items()}
        bench.row(
            "in use",
            cfg_step_seconds=round(best["stock CFG"], 4),
            pair_step_seconds=round(best["the pair"], 4),
            ratio=round(best["the pair"] / best["stock CFG"], 3),
            dynamic_weights_gib=_dynamic_weights(),
        )
        formula = sample(bench, reference_of(*members, positive, negative, CFG), 2)
        ours = sample(bench, guider_of(joined, positive, negative, CFG), 2)
        apart = relative_error(sample(bench, base, 2), formula)
        bench.row("formula", relative_error=relative_error(ours, formula), base_is_apart_by=apart)


def _dynamic_weights() -> float:
    if not comfy.memory_management.aimdo_enabled:
        return 0.0
    import comfy_aimdo.control

    return round(comfy_aimdo.control.get_total_vram_usage() / GIB, 3)


def work_on(task: Task, write: Callable[[dict[str, Any]], None]) -> None:
    bench = Bench(task, write)
    for part in task.parts:
        try:
            PARTS[part](bench)
        except Exception as error:
            # What else can be measured should be: a device that is lent is short of time.
            traceback.print_exc()
            bench.row(part, failed=f"{type(error).__name__}: {' '.join(str(error).split())[:600]}")


def printed(results: Path) -> Callable[[dict[str, Any]], None]:
    """Adds rows to a file of JSON lines, and prints them."""

    def write(row: dict[str, Any]) -> None:
        line = json.dumps(row)
        print(line, flush=True)
        with results.open("a", encoding="utf-8") as file:
            file.write(line + "\n")

    return write
