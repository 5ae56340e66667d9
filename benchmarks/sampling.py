"""What CHATS costs in real ComfyUI beside stock CFG: time a step and memory, for two loaded models, for two LoRAs on
one base, and for one LoRA that a pair was distilled into.

All sides sample models of random weights at an architecture's real widths, alternately in one process, so that a noisy
moment hits all; only steps are timed (from one to the next), not loading. Memory is what ComfyUI holds loaded, and the
peak of a process of its own.

    COMFYUI_PATH=... ComfyUI's-python benchmarks/sampling.py --layout sd15 --markdown benchmarks/sampling.md
    COMFYUI_PATH=... ComfyUI's-python benchmarks/sampling.py --layout sdxl --pixels 1024 --batches 1 --cuda
"""

from __future__ import annotations

import argparse
import json
import logging
import platform
import re
import statistics
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "comfy"))

import conftest

if not conftest.USABLE:
    sys.exit(conftest.SKIPPED)

if "--cuda" in sys.argv:
    conftest.args.cpu = False  # before ComfyUI looks for devices

import comfy.model_management
import comfy.sd
import mini
import torch
from comfy_extras import nodes_custom_sampler
from comfyui_version import __version__
from running import guider_of, result, run

UNETS = {
    "mini": mini.SD15,
    "sd15": {
        **mini.SD15,
        "num_res_blocks": [2, 2, 2, 2],
        "channel_mult": [1, 2, 4, 4],
        "transformer_depth": [1, 1, 1, 1, 1, 1, 0, 0],
        "transformer_depth_output": [1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0],
    },
    "sdxl": {
        **mini.SDXL,
        "channel_mult": [1, 2, 4],
        "transformer_depth_output": [0, 0, 0, 2, 2, 2, 10, 10, 10],
        "transformer_depth_middle": 10,
    },
}
ATTENTION = (".to_q.weight", ".to_k.weight", ".to_v.weight", ".to_out.0.weight")
RANKS = (16, 32, 64)
CFG, INTERVAL_END = 6.0, 0.85
STOCK, DISTILLED = "stock CFG", "distilled LoRA, rank 16, cfg 1"
# The steps between the first callback and the last; with the interval, the last of them is beyond it.
STEPS = 6
PIXELS_PER_LATENT = 8


class Sides:
    """The guiders to be compared, made when first asked for, over as few models as they need."""

    def __init__(self, layout: str, chosen: list[str] | None = None):
        self.config, self.chosen = UNETS[layout], chosen
        self.models: dict[int, object] = {}
        kind = "sdxl" if layout == "sdxl" else "sd15"
        self.conds = mini.conditioning(kind, 3), mini.conditioning(kind, 4)
        self.pair_models = conftest.pack_module("nodes.sampling.pairing").pair_models

    def names(self) -> list[str]:
        dual = ["core's DualModelGuider"] if hasattr(nodes_custom_sampler, "DualModelGuider") else []
        names = [
            STOCK,
            *dual,
            "full pair",
            *(f"shared pair, rank {rank}" for rank in RANKS),
            "full pair, interval",
            "shared pair, rank 32, interval",
            DISTILLED,
        ]
        return [name for name in names if self.chosen is None or name == STOCK or name in self.chosen]

    def model(self, seed: int):
        if seed not in self.models:
            self.models[seed] = comfy.sd.load_diffusion_model_state_dict(mini.unet_weights(self.config, seed))
        return self.models[seed]

    def guider(self, name: str):
        if name == STOCK:
            return guider_of(self.model(1), *self.conds, CFG)
        if name.startswith("core's"):
            positive, negative = self.conds
            return result(nodes_custom_sampler.DualModelGuider, self.model(1), positive, CFG, self.model(2), negative)[
                0
            ]
        if name == DISTILLED:
            return guider_of(self.adapted(16, 13), *self.conds, 1.0)
        end = INTERVAL_END if name.endswith("interval") else 1.0
        if name.startswith("full"):
            members = (self.model(1), self.model(2))
        else:
            rank = int(re.search(r"rank (\d+)", name).group(1))
            members = tuple(self.adapted(rank, seed) for seed in (11, 12))
        return guider_of(self.pair_models(*members, 0.0, end), *self.conds, CFG)

    def adapted(self, rank: int, seed: int):
        """The base with a LoRA on every attention projection, which is what the trainer makes by default."""
        model, generator, state = self.model(1), torch.Generator().manual_seed(seed), {}
        for key, weight in model.model.state_dict().items():
            if key.endswith(ATTENTION):
                name = key.removesuffix(".weight")
                state[f"{name}.lora_down.weight"] = (
                    torch.randn(rank, weight.shape[1], generator=generator) / weight.shape[1] ** 0.5
                )
                state[f"{name}.lora_up.weight"] = torch.randn(weight.shape[0], rank, generator=generator) * 0.1
                state[f"{name}.alpha"] = torch.tensor(float(rank))
        return comfy.sd.load_lora_for_models(model, None, state, 1.0, 0.0)[0]


def step_seconds(guider, batch: int, pixels: int, clock: Callable[[], float]) -> float:
    """Mean seconds a step of one run, over all but the first."""
    ticks = []
    latent = mini.latent("sd15", batch, pixels // PIXELS_PER_LATENT)
    run(guider, latent, steps=STEPS, callback=lambda *_: ticks.append(clock()))
    return (ticks[-1] - ticks[0]) / (len(ticks) - 1)


def measure_time(
    sides: Sides, batches: list[int], rounds: int, pixels: int, clock: Callable[[], float]
) -> dict[int, dict[str, list[float]]]:
    times: dict[int, dict[str, list[float]]] = {batch: defaultdict(list) for batch in batches}
    guiders = {name: sides.guider(name) for name in sides.names()}
    for batch in batches:
        for _ in range(rounds):
            for name, guider in guiders.items():
                times[batch][name].append(step_seconds(guider, batch, pixels, clock))
                print(f"batch {batch}, {name}: {times[batch][name][-1]:.3f} s a step", file=sys.stderr)
    return times


def on_card() -> float:
    """Seconds by the clock, once the card has done what it was given."""
    torch.cuda.synchronize()
    return time.perf_counter()


def measure_memory(layout: str, name: str, pixels: int) -> None:
    """Prints, as JSON, the bytes of weights that ComfyUI holds loaded in a run, and the process's peak. Run in a
    process of its own."""
    sides = Sides(layout)
    guider = sides.guider(name)
    run(guider, mini.latent("sd15", 1, pixels // PIXELS_PER_LATENT), steps=1)
    loaded = {
        id(entry.model.model): entry.model.model_size()
        for entry in comfy.model_management.current_loaded_models
        if entry.model
    }
    peak = int(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text(encoding="utf-8")).group(1)) * 1024
    print(json.dumps({"loaded": sum(loaded.values()), "peak": peak}))


def memory_of_all(layout: str, names: list[str], pixels: int) -> dict[str, dict[str, int]]:
    found = {}
    for name in names:
        command = [sys.executable, __file__, "--layout", layout, "--pixels", str(pixels), "--memory-of", name]
        found[name] = json.loads(
            subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()[-1]
        )
        print(f"{name}: {found[name]}", file=sys.stderr)
    return found


def table(times: dict[int, dict[str, list[float]]], memory: dict[str, dict[str, int]]) -> list[str]:
    """Ratios to stock CFG, each to the stock run of the same round: median, and the range over the rounds."""
    batches = list(times)
    lines = [
        "| side | "
        + " | ".join(f"time, batch {batch}" for batch in batches)
        + " | loaded weights | peak of the process |"
    ]
    lines.append("| --- " * (len(batches) + 3) + "|")
    for name in times[batches[0]]:
        cells = []
        for batch in batches:
            ratios = [mine / stock for mine, stock in zip(times[batch][name], times[batch][STOCK], strict=True)]
            cells.append(f"{statistics.median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f})")
        for kind in ("loaded", "peak"):
            held = memory.get(name)
            cells.append("" if held is None else f"{held[kind] / memory[STOCK][kind]:.3f} ({held[kind] / 1e9:.2f} GB)")
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layout", choices=UNETS, default="mini")
    parser.add_argument("--pixels", type=int, default=256)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--threads",
        type=int,
        default=1,
        help="with 1, time is the process's own, which other work on the machine lengthens least (on a CPU)",
    )
    parser.add_argument("--sides", nargs="+", help="beside stock CFG; by default all")
    parser.add_argument("--markdown", type=Path)
    parser.add_argument("--cuda", action="store_true", help="on a graphics card, by the clock; time alone")
    parser.add_argument("--memory-of", help=argparse.SUPPRESS)
    args = parser.parse_args()
    logging.disable(logging.WARNING)
    torch.set_num_threads(args.threads)
    if args.memory_of:
        measure_memory(args.layout, args.memory_of, args.pixels)
        return
    sides = Sides(args.layout, args.sides)
    names = [name for name in sides.names() if not name.endswith("interval")]
    memory = {} if args.cuda else memory_of_all(args.layout, names, args.pixels)
    clock = time.process_time if args.threads == 1 else time.perf_counter
    times = measure_time(sides, args.batches, args.rounds, args.pixels, on_card if args.cuda else clock)
    stock = ", ".join(f"{statistics.median(times[batch][STOCK]):.4f} s at batch {batch}" for batch in args.batches)
    where = f"{args.threads} thread(s), no GPU"
    if args.cuda:
        where = torch.cuda.get_device_name()
    dtype = str(sides.model(1).model.get_dtype()).removeprefix("torch.")
    heading = (
        f"{time.strftime('%Y-%m-%d')}, {platform.machine()}, {where}, ComfyUI {__version__}, "
        f"torch {torch.__version__}, {args.layout} layout with random {dtype} weights, {args.pixels} × {args.pixels} "
        "pixels, "
        f"{args.rounds} rounds. Stock CFG takes {stock} a step."
    )
    text = "\n".join([heading, "", *table(times, memory), ""])
    print(text)
    if args.markdown:
        args.markdown.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
