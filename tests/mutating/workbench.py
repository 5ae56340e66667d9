"""What damaged inputs of the trainer are read beside: a tiny base, pairs, a trained checkpoint, files of a pair, and a
config."""

from __future__ import annotations

import contextlib
import io
import json
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
for place in (str(ROOT), str(ROOT / "tests" / "train")):
    if place not in sys.path:
        sys.path.append(place)


@dataclass(frozen=True)
class Workbench:
    """Undamaged files below one folder."""

    folder: Path
    settings: dict

    @property
    def base(self) -> Path:
        """A diffusers folder of a tiny SD1.5."""
        return self.folder / "base"

    @property
    def pairs(self) -> Path:
        return self.folder / "pairs"

    def member(self, name: str) -> Path:
        """A whole model or a LoRA: `preferred`, `dispreferred`, `lora`, `checkpoint`."""
        return self.folder / f"{name}.safetensors"

    def write_config(self, path: Path, **settings: object) -> Path:
        """A config of the workbench's run with other settings, as YAML that is JSON."""
        path.write_text(json.dumps({**self.settings, **settings}), encoding="utf-8")
        return path


def set_up(folder: Path, trained: bool = True) -> Workbench:
    """Makes them; with ``trained`` also a checkpoint of one step and the files of pairs."""
    import tiny_pipelines
    import tiny_runs

    base = tiny_pipelines.save_pipeline("sd15", folder / "base")
    pairs = tiny_runs.write_pairs(folder / "pairs")
    steps = dict(max_train_steps=1, checkpointing_steps=1, validation_pairs=0, training_method="lora")
    workbench = Workbench(folder, tiny_runs.run_settings("sd15", base, pairs, folder, **steps))
    if trained:
        _train(workbench)
        _write_members(workbench)
    return workbench


def _train(workbench: Workbench) -> None:
    from chats_train.settings.config_file import parse_config
    from chats_train.training.train import train

    with contextlib.redirect_stderr(io.StringIO()):
        train(parse_config(workbench.settings))
    (workbench.folder / "run" / "run_preferred.safetensors").rename(workbench.member("lora"))


def _write_members(workbench: Workbench) -> None:
    """Both members as whole models in their native layout, and the base as a checkpoint of its denoiser."""
    from safetensors.torch import load_file

    from chats.pair import PairMetadata, write_member
    from chats_train.layouts.formats import file_format
    from chats_train.layouts.places import to_native

    state = load_file(next((workbench.base / "unet").glob("*.safetensors")))
    native = to_native(state, file_format("sd15").layout(state))
    for member, change in (("preferred", 0.01), ("dispreferred", -0.01)):
        metadata = PairMetadata(
            member, pair_id="p", prediction_type="epsilon", null_prompt="encoded_empty", alpha=0.5, guidance_scale=5.0
        )
        write_member(workbench.member(member), {key: value + change for key, value in native.items()}, metadata)
    prefixed = {f"model.diffusion_model.{key}": value for key, value in native.items()}
    write_member(workbench.member("checkpoint"), prefixed, PairMetadata("preferred"))
