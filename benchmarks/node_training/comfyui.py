"""ComfyUI in this process as its main.py starts it: on CUDA with dynamic VRAM, or on the CPU.

To be imported before torch, since what ComfyUI tells CUDA's allocator is read with it.
"""

from __future__ import annotations

import importlib.metadata
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tests" / "comfy"))

import conftest

if not conftest.USABLE:
    sys.exit(conftest.SKIPPED)

GIB = 1024**3


def start(cpu: bool) -> None:
    """Settles where ComfyUI computes; its modules are imported after this."""
    from comfy.cli_args import args, enables_dynamic_vram

    args.cpu = cpu
    if cpu:
        return
    import cuda_malloc  # noqa: F401  sets the allocator, as main.py does

    dynamic = enables_dynamic_vram()
    if dynamic:
        import comfy_aimdo.control

        comfy_aimdo.control.init(nvml_pressure=not args.disable_nvml_pressure)
    import comfy.memory_management
    import comfy.model_management
    import comfy.model_patcher

    devices = ((device.index, 0) for device in comfy.model_management.get_all_torch_devices())
    if dynamic and comfy_aimdo.control.init_devices(devices):
        comfy.model_patcher.CoreModelPatcher = comfy.model_patcher.ModelPatcherDynamic
        comfy.memory_management.aimdo_enabled = True


def machine() -> dict[str, Any]:
    """What a figure of this process belongs to."""
    import comfy.memory_management
    import comfy.model_management
    import torch
    from comfyui_version import __version__

    on_card = torch.cuda.is_available() and not comfy.model_management.args.cpu
    card = torch.cuda.get_device_properties(0) if on_card else None
    return {
        "comfyui": __version__,
        "torch": torch.__version__,
        "card": card.name if card else "none",
        "card_gib": round(card.total_memory / GIB, 1) if card else 0,
        "dynamic_vram": comfy.memory_management.aimdo_enabled,
        "allocator": torch.cuda.get_allocator_backend() if card else "",
        **{name: importlib.metadata.version(name) for name in ("comfy-aimdo", "comfy-kitchen")},
    }


class Memory:
    """The graphics card's memory as torch counts it, but for a ballast that leaves only so much of it free."""

    def __init__(self, free_gib: float | None):
        import torch

        self.cuda = torch.cuda if not on_cpu() else None
        self.ballast = None
        if self.cuda and free_gib is not None:
            taken = self.cuda.mem_get_info()[0] - int(free_gib * GIB)
            self.ballast = torch.empty(taken, dtype=torch.uint8, device="cuda")
        self.offset = self.ballast.numel() if self.ballast is not None else 0

    def begin(self) -> None:
        if self.cuda:
            self.cuda.synchronize()
            self.cuda.reset_peak_memory_stats()

    def now(self) -> float:
        return self._gib(self.cuda.memory_allocated()) if self.cuda else 0.0

    def peak(self) -> dict[str, float]:
        """Since :meth:`begin`; weights under dynamic VRAM are beside torch's memory, and not in it."""
        if not self.cuda:
            return {}
        return {
            "peak_allocated_gib": self._gib(self.cuda.max_memory_allocated()),
            "peak_reserved_gib": self._gib(self.cuda.max_memory_reserved()),
        }

    def synchronize(self) -> None:
        if self.cuda:
            self.cuda.synchronize()

    def _gib(self, count: int) -> float:
        return round((count - self.offset) / GIB, 3)


def on_cpu() -> bool:
    from comfy.cli_args import args

    return bool(args.cpu)
