"""What the pack's own Python costs a step, over two stock single-model passes, in one run of real ComfyUI on the CPU.

All sides sample the same mini pair, alternately, with the same number of passes through the same two networks: as
CHATS; as two stock runs at cfg 1, one for each model, which pay for their samplers twice; and, where ComfyUI has it, as
its own DualModelGuider, one sampler around two passes. What a run costs beside its steps is told apart by runs of two
lengths.

    COMFYUI_PATH=... ComfyUI's-python benchmarks/overhead.py
"""

import json
import logging
import platform
import statistics
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "comfy"))

import conftest

if not conftest.USABLE:
    sys.exit(conftest.SKIPPED)

import mini
import torch
from comfy_extras import nodes_custom_sampler
from comfyui_version import __version__
from running import guider_of, result, run

SHORT, LONG, REPEATS = 5, 45, 15


def milliseconds(function) -> float:
    """Of this process's own time on one thread, which other work on the machine does not lengthen as it does the wall's
    clock."""
    start = time.process_time()
    function()
    return 1000 * (time.process_time() - start)


def per_step(short: list[float], long: list[float]) -> float:
    """Milliseconds a step: what the additional steps of the long runs cost, medians of both."""
    return (statistics.median(long) - statistics.median(short)) / (LONG - SHORT)


def main() -> None:
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    pair_models = conftest.pack_module("nodes.sampling.pairing").pair_models
    preferred, dispreferred = mini.model("sd3", 1), mini.model("sd3", 2)
    positive, negative = mini.conditioning("sd3", 3), mini.conditioning("sd3", 4)
    joined = pair_models(preferred, dispreferred, 0.0, 1.0)
    interval = pair_models(preferred, dispreferred, 0.0, 0.999)
    latent = mini.latent("sd3")
    sides = {
        "chats": lambda steps: run(guider_of(joined, positive, negative, 6.0), latent, steps=steps),
        "chats_with_interval": lambda steps: run(guider_of(interval, positive, negative, 6.0), latent, steps=steps),
        "two_stock_passes": lambda steps: [
            run(guider_of(model, conditioning, negative, 1.0), latent, steps=steps)
            for model, conditioning in ((preferred, positive), (dispreferred, negative))
        ],
    }
    if hasattr(nodes_custom_sampler, "DualModelGuider"):
        sides["dual_model_guider"] = lambda steps: run(
            result(nodes_custom_sampler.DualModelGuider, preferred, positive, 6.0, dispreferred, negative)[0],
            latent,
            steps=steps,
        )
    times = {name: {SHORT: [], LONG: []} for name in sides}
    for _ in range(REPEATS):  # alternately, so that a noisy moment hits all
        for steps in (SHORT, LONG):
            for name, side in sides.items():
                times[name][steps].append(milliseconds(lambda side=side, steps=steps: side(steps)))
    cost = {name: per_step(t[SHORT], t[LONG]) for name, t in times.items()}
    report = {
        "date": time.strftime("%Y-%m-%d"),
        "machine": f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} thread, no GPU",
        "comfyui": __version__,
        "torch": torch.__version__,
        "model": "mini SD3 (6.6 M parameters), latent 8 x 8, batch 1",
        "cpu_milliseconds_per_step": {name: round(value, 3) for name, value in cost.items()},
        "chats_minus_other_ms_per_step": {
            name: round(cost["chats"] - value, 3) for name, value in cost.items() if not name.startswith("chats")
        },
    }
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
