"""`evaluate --pair`: files that no run here made are, in every form, the members of the run that they were exported
from."""

import json

import pytest
import tiny_pipelines
import torch
from safetensors.torch import load_file, save_file
from test_evaluate import train_a_little

from chats_train.cli import main
from chats_train.runs.member_files import MemberFile
from chats_train.runs.opening import open_family
from chats_train.runs.published import open_pair
from chats_train.runs.trained import export, open_trained, trained_members
from chats_train.settings.config_file import load_config
from chats_train.support.errors import UserError

SETTINGS = ("mixed_precision=no", "bucket_reso_steps=16", "family=sd15")
MEMBERS = ("preferred", "dispreferred", "reference")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A pair by each method: its base, its run's YAML and its exported files."""
    base, found = tiny_pipelines.save_pipeline("sd15", tmp_path_factory.mktemp("base")), {}
    for method in ("lora", "full"):
        folder = tmp_path_factory.mktemp(method)
        raw = {"version": 1, "family": "sd15", "pretrained_model": str(base), "data": {"path": str(folder)}}
        raw |= {"resolution": 32, "output_dir": str(folder / "run"), "mixed_precision": "no", "guidance_scale": 2.0}
        raw |= {"gradient_checkpointing": False, "bucket_reso_steps": 16, "training_method": method, "network_rank": 4}
        path = folder / "run.yaml"
        path.write_text(json.dumps({**raw, "network_alpha": 2.0}))
        train_a_little(path, step=1)
        found[method] = base, path, export(load_config(path), "latest", folder / "files", "fp32")
    return found


def predictions(config, members):
    """What both members and the base make of the same latents."""
    family = open_family(config, "cpu")
    latents = torch.randn(1, 4, 4, 4, generator=torch.Generator().manual_seed(0))
    prompt = family.encode_prompt(["a cat"])
    with torch.no_grad():
        return [family.predict(members.denoiser(name), latents, torch.tensor([500.0]), prompt) for name in MEMBERS]


def of_run(path):
    config = load_config(path)
    return predictions(config, trained_members(config, open_family(config, "cpu"), open_trained(config, "latest")))


def of_files(pair, base, folder, *settings):
    subject = open_pair(*pair, str(base), folder, [*SETTINGS, *settings])
    return predictions(subject.config, subject.members(open_family(subject.config, "cpu")))


def test_loras_are_the_runs(made, tmp_path):
    """As exported, and as diffusers names them: without alpha, and with another rank in the second file."""
    base, path, files = made["lora"]
    expected, family = of_run(path), open_family(load_config(path), "cpu")
    renamed = [tmp_path / "0.safetensors", tmp_path / "1.safetensors"]
    for number, file in enumerate(files):
        state = {}
        for module, (down, up) in MemberFile(file, "--pair").factors(family).items():
            # The rows that come with the other's higher rank multiply zeros.
            state[f"unet.{module}.lora_A.weight"] = torch.cat([down, torch.zeros(number, *down.shape[1:])])
            state[f"unet.{module}.lora_B.weight"] = torch.cat([up, torch.ones(up.shape[0], number)], dim=1)
        save_file(state, renamed[number])
    for pair in (files, renamed):
        found = of_files(pair, base, tmp_path)
        for one, other in zip(found, expected, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)
    assert (expected[0] - expected[1]).abs().max() > 1e-2


def test_whole_models_are_the_runs(made, tmp_path):
    """As exported, and as the published pairs come: a file of diffusers, a pipeline's folder."""
    base, path, files = made["full"]
    config, expected = load_config(path), of_run(path)
    members = trained_members(config, open_family(config, "cpu"), open_trained(config, "latest"))
    folders = [tmp_path / "unet_win", tmp_path / "pipeline"]
    members.denoiser("preferred").save_pretrained(folders[0])
    members.denoiser("dispreferred").save_pretrained(folders[1] / "unet")
    (folders[1] / "model_index.json").write_text("{}")
    for pair in (files, (folders[0] / "diffusion_pytorch_model.safetensors", folders[1])):
        assert all(map(torch.equal, of_files(pair, base, tmp_path), expected))


def test_how_a_pair_is_sampled(made, tmp_path):
    """By what its files say, else as the authors sample theirs; `--set` has the last word."""
    base, _, files = made["full"]
    stated = open_pair(*files, str(base), tmp_path, SETTINGS).config
    assert (stated.guidance_scale, stated.resolution, stated.null_prompt) == (2.0, 32, "encoded_empty")
    assert (stated.training_method, stated.weight_dtype) == ("full", "fp32")
    bare = [tmp_path / "a.safetensors", tmp_path / "b.safetensors"]
    for path, file in zip(bare, files, strict=True):
        save_file(load_file(file), path)
    config = open_pair(*bare, str(base), tmp_path, ["family=sdxl", "alpha=0.7"]).config
    assert (config.guidance_scale, config.resolution, config.null_prompt) == (5.0, 1024, "encoded_empty")
    assert (config.alpha, config.mixed_precision, config.weight_dtype) == (0.7, "bf16", "bf16")
    with pytest.raises(UserError, match="add `--set family=NAME`"):
        open_pair(*bare, str(base), tmp_path)  # its text is narrower than any published UNet's


def evaluate_pair(pair, base, prompts, output):
    given = [part for setting in SETTINGS for part in ("--set", setting)]
    options = ["--prompts", str(prompts), "--seeds", "1", "--steps", "1", "--output", str(output)]
    return main(["evaluate", "--pair", *map(str, pair), "--base", str(base), *given, *options])


def test_a_pair_of_files_is_evaluated(made, tmp_path, capsys):
    base, _, files = made["full"]
    (tmp_path / "prompts.txt").write_text("a cat\n")
    assert evaluate_pair(files, base, tmp_path / "prompts.txt", tmp_path / "out") == 0
    assert "run_preferred.safetensors and run_dispreferred.safetensors: 1 prompts" in capsys.readouterr().out
    assert len(list((tmp_path / "out" / "pictures").glob("*/*.png"))) == 4


def test_what_is_no_pair_is_a_sentence(made, tmp_path, capsys):
    base, _, loras = made["lora"]
    wholes, prompts = made["full"][2], tmp_path / "prompts.txt"
    prompts.write_text("a cat\n")

    def refused(*pair):
        assert evaluate_pair(pair, base, prompts, tmp_path) == 2
        return capsys.readouterr().err

    assert "give two LoRAs, or two whole models" in refused(loras[0], wholes[1])
    assert "which is the dispreferred member" in refused(loras[1], loras[0])
    assert "is not there" in refused(tmp_path / "none.safetensors", loras[1])
    state = load_file(loras[0])
    key = next(key for key in state if key.endswith("lora_down.weight"))
    for name, change in {
        "text": {"lora_te_text_model_layers_0.lora_down.weight": state[key].clone()},
        "unknown": {"lora_unet_nowhere.lora_down.weight": state[key].clone()},
        "shape": {key: state[key][:, :1].contiguous()},
    }.items():
        save_file({**state, **change}, tmp_path / f"{name}.safetensors")
    assert "changes a text encoder" in refused(tmp_path / "text.safetensors", loras[1])
    assert "`lora_unet_nowhere.lora_down.weight`, which is no factor" in refused(
        tmp_path / "unknown.safetensors", loras[1]
    )
    assert "do not fit the base's" in refused(tmp_path / "shape.safetensors", loras[1])
    stated = {"lora_adapter_metadata": json.dumps({"unet.r": 4, "unet.lora_alpha": 8})}
    save_file(state, tmp_path / "header.safetensors", metadata=stated)
    assert "states its alpha in the header" in refused(tmp_path / "header.safetensors", loras[1])
    assert main(["evaluate", "--prompts", str(prompts)]) == 2
    assert "neither of a run's YAML and `--pair`" in capsys.readouterr().err
    assert main(["evaluate", "--pair", *map(str, loras), "--prompts", str(prompts)]) == 2
    assert "`--pair` and `--base` go together" in capsys.readouterr().err


def test_a_member_of_another_base_is_refused(made, tmp_path):
    _, path, files = made["full"]
    family = open_family(load_config(path), "cpu")
    member = MemberFile(files[0], "--pair")
    state = load_file(files[0])
    first = next(iter(state))
    save_file({key: value for key, value in state.items() if key != first}, tmp_path / "less.safetensors")
    with pytest.raises(UserError, match="it is not whole"):
        MemberFile(tmp_path / "less.safetensors", "--pair").whole(family)
    assert member.whole(family).keys() == family.load_denoiser().state_dict().keys()
