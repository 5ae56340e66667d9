"""Paths as people write them: filled in where they are read, refused in a sentence before a run where they cannot be
used."""

import json
import os
from pathlib import Path

import pytest

from chats.files import replacing
from chats_train import cli
from chats_train.runs.opening import open_family
from chats_train.settings import config_file
from chats_train.support.errors import UserError

RAW = {
    "version": 1,
    "family": "sd15",
    "output_dir": "out",
    "pretrained_model": "base.safetensors",
    "data": {"path": "pairs"},
}
SETTINGS = (
    *("output_dir", "pretrained_model", "encoders", "tokenizer", "configs", "cache_dir", "resume_from_checkpoint"),
    "data.path",
)


@pytest.fixture(autouse=True)
def environment(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("PAIRS_HERE", "/data/my pairs")
    monkeypatch.delenv("NOWHERE_SET", raising=False)


def with_path(setting: str, value: str) -> dict:
    return {**RAW, "data": {"path": value}} if setting == "data.path" else {**RAW, setting: value}


def path_of(config, setting: str) -> str:
    return str(config.data.path if setting == "data.path" else getattr(config, setting))


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("~/x", "{home}/x"),
        ("$HOME/x", "{home}/x"),
        ("${HOME}/x", "{home}/x"),
        ("${PAIRS_HERE}/a", "/data/my pairs/a"),
        ("/mnt/$PAIRS_HERE.old", "/mnt//data/my pairs.old"),
        ("plain/x~y", "plain/x~y"),
        ("owner/name", "owner/name"),
        ("cost$/5$", "cost$/5$"),
    ],
)
def test_home_and_variables_are_filled_in(setting, written, meant, tmp_path):
    config = config_file.parse_config(with_path(setting, written))
    found, expected = path_of(config, setting), meant.format(home=tmp_path / "home")
    assert found == (str(Path(expected)) if setting in ("output_dir", "cache_dir", "data.path") else expected)


def test_what_follows_from_a_path_follows_from_the_filled_in_one(tmp_path):
    config = config_file.parse_config({**RAW, "output_dir": "$HOME/run"})
    assert config.cache_dir == tmp_path / "home" / "run" / "cache"


def test_the_saved_settings_are_the_filled_in_ones(tmp_path):
    config = config_file.parse_config({**RAW, "output_dir": "~/run", "pretrained_model": "$HOME/b"})
    config_file.save_resolved(config, tmp_path / "saved.yaml")
    assert config_file.load_config(tmp_path / "saved.yaml") == config
    assert "~" not in (tmp_path / "saved.yaml").read_text()


def test_a_config_without_them_is_the_same_as_ever(tmp_path):
    """Its digest stands in the metadata of pairs; that of version 0.1.0 is held in test_earlier_versions."""
    config = config_file.parse_config(RAW)
    assert {**config.model_dump(mode="json"), **RAW, "data": config.data.model_dump(mode="json")} == (
        config.model_dump(mode="json")
    )
    config_file.save_resolved(config, tmp_path / "saved.yaml")
    assert "output_dir: out\npretrained_model: base.safetensors\n" in (tmp_path / "saved.yaml").read_text()


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize(
    ("written", "sentence"),
    [
        ("$NOWHERE_SET/x", "`$NOWHERE_SET/x`, and the environment has no variable `NOWHERE_SET`; set it, or write"),
        ("a/${NOWHERE_SET}", "and the environment has no variable `NOWHERE_SET`"),
        ("${HOME/x", "where `${` has no `}`; close it"),
        ("~nobodyofthisname/x", "which begins with `~`, and there is no such user; write the path out"),
    ],
)
def test_what_cannot_be_filled_in_is_refused(setting, written, sentence):
    with pytest.raises(UserError) as caught:
        config_file.parse_config(with_path(setting, written))
    assert str(caught.value).startswith(f"`{setting}` is `{written}`, ")
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize(
    ("quoted", "shown"),
    [
        (r"C:\temp", r"C:\temp"),
        (r"C:\new\runs", r"C:\new\runs"),
        (r"D:\bases", "D:\\x08ases"),
        (r"D:\Lora", r"D:\u2028ora"),
        (r"D:\Pictures", r"D:\u2029ictures"),
        (r"C:\_old", r"C:\xa0old"),
    ],
)
def test_escapes_of_double_quotes_are_refused(setting, quoted, shown, tmp_path):
    r"""YAML reads "C:\temp" as a tab and `emp`; the mutated path would be made, or not found."""
    import yaml

    value = yaml.safe_load(f'"{quoted}"')
    with pytest.raises(UserError) as caught:
        config_file.parse_config(with_path(setting, value))
    said = str(caught.value)
    assert said.startswith(f"`{setting}` is `{shown}…`, which holds a control character")
    assert said.endswith("; put the path in single quotes")
    assert "\n" not in said
    assert not any(ord(character) < 32 for character in said)


@pytest.mark.parametrize("path", [r"C:\Users\me", r"C:\models", r"D:\data\pairs"])
def test_double_quotes_that_are_no_yaml_get_the_same_advice(path, tmp_path):
    (tmp_path / "run.yaml").write_text(f'version: 1\nfamily: sd15\noutput_dir: "{path}"\n')
    with pytest.raises(UserError, match=r"in line 3; put a path with backslashes in single quotes$"):
        config_file.load_config(tmp_path / "run.yaml")
    (tmp_path / "run.yaml").write_text(f"version: 1\nfamily: sd15\noutput_dir: '{path}'\ndata: {{path: x}}\n")
    with pytest.raises(UserError, match="`pretrained_model` is missing"):
        config_file.load_config(tmp_path / "run.yaml")


def test_paths_of_commands_are_filled_in(tmp_path, capsys):
    """Not every shell fills in `--output=~/run.yaml`."""
    assert cli.main(["init", "sd15", "--output=~/run.yaml"]) == 0
    assert (tmp_path / "home" / "run.yaml").is_file()
    assert cli.main(["init", "sd15", "--output=$PAIRS_HERE.yaml/${NOWHERE_SET}"]) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: `output` is `$PAIRS_HERE.yaml/${NOWHERE_SET}`, and the environment has no variable")
    assert cli.main(["inspect", "~/run.yaml"]) == 2
    assert "can run code when it is opened" in capsys.readouterr().err


def test_a_file_that_is_there_under_such_a_name_is_taken(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("$NOWHERE_SET.ckpt").touch()
    assert cli.main(["inspect", "$NOWHERE_SET.ckpt"]) == 2
    assert "$NOWHERE_SET.ckpt is a `.ckpt` file" in capsys.readouterr().err


# Names that are too long.

LONGEST = os.pathconf("/", "PC_NAME_MAX") if hasattr(os, "pathconf") else 255
# Of `_dispreferred.safetensors`, and of what a file is called while it is written.
ADDED = len("_dispreferred.safetensors") + len(".") + len(".") + 32 + len(".tmp")


def test_the_longest_name_can_be_written(tmp_path, config):
    """What is allowed is what the exported files are written under, to the byte."""
    from chats_train.training.train import train

    name = "n" * (LONGEST - ADDED)
    run = config(output=name, max_train_steps=1, checkpointing_steps=1, validation_pairs=0)
    train(run)
    assert (run.output_dir / f"{name}_dispreferred.safetensors").is_file()
    with (
        pytest.raises(OSError, match="too long"),
        replacing(run.output_dir / f"{name}n_dispreferred.safetensors") as path,
    ):
        path.write_bytes(b"")


@pytest.mark.parametrize("name", ["n" * (LONGEST - ADDED + 1), "ü" * (LONGEST // 2 - 20), "n" * (LONGEST + 1)])
def test_a_name_that_is_too_long_is_found_before_the_run(name, tmp_path, config, capsys):
    run = config(output=name)
    path = tmp_path / "run.yaml"
    path.write_text(json.dumps(run.model_dump(mode="json")))
    assert cli.main(["check", str(path)]) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: `output_dir` is `")
    assert f"and the file system takes {LONGEST}; choose a shorter name\n" in said
    if len(name) < LONGEST:
        assert cli.main(["train", str(path)]) == 2
        assert "choose a shorter name\n" in capsys.readouterr().err
        assert not (run.output_dir / "checkpoints").exists()


def test_a_path_that_is_too_long_as_a_whole_is_found(tmp_path, config):
    limit = os.pathconf(tmp_path, "PC_PATH_MAX")
    folders = "/".join(["f" * 200] * (limit // 201))
    with pytest.raises(UserError, match=f"`output_dir` is .*the whole path has .* takes {limit - 1}; choose a shorter"):
        open_family(config(output=f"{folders}/run"), "cpu")
    with pytest.raises(UserError, match=r"`cache_dir` is .*the name .* has 300 bytes"):
        open_family(config(cache_dir=str(tmp_path / ("c" * 300))), "cpu")
