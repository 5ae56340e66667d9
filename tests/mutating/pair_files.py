"""Damaged members, LoRAs and bases, read by what reads such files: `inspect`, `extract`, the check of a pair, `check`
and `export`."""

from __future__ import annotations

import random
from pathlib import Path

from .cases import Case, Read, command
from .tensor_files import write_damaged
from .workbench import Workbench


class PairFiles:
    """Safetensors files."""

    name = "pair files"

    def __init__(self, workbench: Workbench):
        self.workbench = workbench

    def make(self, rng: random.Random, folder: Path) -> Case:
        role = rng.choice(["member", "member", "lora", "base folder", "checkpoint"])
        if role == "base folder":
            return self._base_folder(rng, folder)
        path = folder / "damaged.safetensors"
        original = {"member": rng.choice(["preferred", "dispreferred"])}.get(role, role)
        mutation = write_damaged(rng, self.workbench.member(original).read_bytes(), path)
        readings: dict[str, Read] = {
            "inspect": lambda: command("inspect", str(path)),
            "pair check": lambda: self._pair_check(path, original),
        }
        if role == "member":
            readings["extract"] = lambda: self._extract(path, original, folder / "out")
        if role == "checkpoint":
            options = {
                "pretrained_model": str(path),
                "encoders": str(self.workbench.base),
                "configs": str(self.workbench.base),
            }
            readings |= self._as_base(folder, **options)
        return Case(mutation, path, readings)

    def _base_folder(self, rng: random.Random, folder: Path) -> Case:
        """A diffusers folder with a damaged denoiser."""
        base = folder / "base"
        base.mkdir()
        for part in self.workbench.base.iterdir():
            if part.name != "unet":
                (base / part.name).symlink_to(part)
        (base / "unet").mkdir()
        (base / "unet" / "config.json").symlink_to(self.workbench.base / "unet" / "config.json")
        whole = next((self.workbench.base / "unet").glob("*.safetensors"))
        path = base / "unet" / whole.name
        mutation = write_damaged(rng, whole.read_bytes(), path)
        return Case(mutation, path, self._as_base(folder, pretrained_model=str(base)))

    def _pair_check(self, path: Path, original: str) -> str | None:
        from chats.pair import PairError, check_files

        other = "preferred" if original == "dispreferred" else "dispreferred"
        paths = {
            original if original in ("preferred", "dispreferred") else "preferred": path,
            other: self.workbench.member(other),
        }
        try:
            check_files(paths["preferred"], paths["dispreferred"])
        except PairError as error:
            return str(error)
        return None

    def _extract(self, path: Path, original: str, output: Path) -> str | None:
        paths = {member: self.workbench.member(member) for member in ("preferred", "dispreferred")} | {original: path}
        sides = [f"--{member}={file}" for member, file in paths.items()]
        return command("extract", *sides, "--rank", "2", "--output", str(output))

    def _as_base(self, folder: Path, **settings: object) -> dict[str, Read]:
        config = self.workbench.write_config(folder / "run.yaml", **settings)
        output = str(folder / "out")
        return {
            "check": lambda: command("check", str(config)),
            "export": lambda: command("export", str(config), "--output", output),
        }
