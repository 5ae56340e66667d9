"""What version 0.1.0 wrote is read as it was: a config, a cache, a checkpoint and a pair, made by that version on the
demo's base."""

import shutil
from pathlib import Path

import pytest

pytest.importorskip("diffusers")

import torch
from safetensors.torch import load_file

from chats.pair import check_files
from chats_train.cli import main
from chats_train.settings.config_file import load_config

WRITTEN = Path(__file__).parent / "version_0_1_0"
BASE = Path(__file__).parents[2] / "chats_train" / "demo" / "base"
CONFIG_SHA256 = "56ae636d0ce0d9eae2a03fb4440de572caa5476a8747e87ddc3b01c690da3fa6"
MEMBERS = ("preferred", "dispreferred")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A copy of the folder as it was left, with the base where its config says."""
    shutil.copytree(WRITTEN, tmp_path, dirs_exist_ok=True)
    shutil.copytree(BASE, tmp_path / "base")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_configs(folder):
    """The user's own and the resolved one are the same settings, under the digest that the pair's metadata has."""
    resolved = load_config("run/config.yaml")
    assert resolved.sha256() == CONFIG_SHA256
    assert check_files(*(f"run/run_{member}.safetensors" for member in MEMBERS))[0].config_sha256 == CONFIG_SHA256
    written = load_config("run.yaml")
    assert written.model_copy(update={"prediction_type": "epsilon", "null_prompt": "encoded_empty"}) == resolved


def test_the_checkpoint_goes_on_to_the_same_pair(folder):
    """Resumed from step 2 of 3, with the latents of that version's cache, the run ends with that version's pair."""
    written = {member: load_file(f"run/run_{member}.safetensors") for member in MEMBERS}
    before = check_files(*(f"run/run_{member}.safetensors" for member in MEMBERS))
    shards = list(Path("run/cache").glob("*.safetensors"))
    assert main(["train", "run/config.yaml", "--set", "resume_from_checkpoint=latest"]) == 0
    assert list(Path("run/cache").glob("*.safetensors")) == shards, "the cache was not used"
    after = check_files(*(f"run/run_{member}.safetensors" for member in MEMBERS))
    assert (after[0].pair_id, after[0].base_sha256, after[1]) == (before[0].pair_id, before[0].base_sha256, [])
    for member, tensors in written.items():
        found = load_file(f"run/run_{member}.safetensors")
        assert list(found) == list(tensors)
        for key, tensor in tensors.items():
            torch.testing.assert_close(found[key], tensor, rtol=2e-3, atol=1e-5)  # stored in half precision


def test_the_checkpoint_is_exported_and_sampled(folder):
    assert main(["export", "run/config.yaml", "--output", "exported"]) == 0
    averages = load_file("run/checkpoints/step-00000002/averages.safetensors")
    exported = load_file("exported/run_preferred.safetensors")
    assert sum(key.startswith("preferred.") for key in averages) == sum(not key.endswith(".alpha") for key in exported)
    assert main(["sample", "run/config.yaml", "--prompt", "a red square", "--set", "sample_steps=2"]) == 0
    assert Path("sample.png").is_file()


def test_the_pair_is_inspected(folder, capsys):
    assert main(["inspect", "run/run_preferred.safetensors"]) == 0
    assert "sample it with cfg 6 (s = 5), alpha 0.5, null prompt: an empty prompt, 48 px" in capsys.readouterr().out
