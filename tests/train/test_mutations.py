"""Damaged files, configs and data sets are taken or refused in one sentence: a few of those that tests/mutating tries,
and what those found, by cause."""

import json
import os
from pathlib import Path

import pytest
import torch
from mutating import cases
from mutating.configs import LAUGHS, MERGES, Configs
from mutating.data_sets import DataSets
from mutating.pair_files import PairFiles
from mutating.workbench import set_up
from pictures import png
from safetensors.torch import save_file

from chats.pair import PairError, read_metadata
from chats_train.settings.config_file import load_config
from chats_train.support.errors import UserError

COUNT = 30


@pytest.fixture(scope="module")
def workbench(tmp_path_factory):
    return set_up(tmp_path_factory.mktemp("workbench"))


@pytest.mark.parametrize("kind", [PairFiles, Configs, DataSets])
def test_damage_is_taken_or_refused_in_a_sentence(kind, workbench, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    result = cases.run(kind(workbench), COUNT, 7, tmp_path)
    assert result.failures() == {}
    assert {"refused"} <= {reading.outcome for reading in result.readings}


def test_the_harness_notices_what_it_looks_for(tmp_path):
    def fails():
        raise KeyError("x")

    def changes():
        (tmp_path / "case" / "input").write_text("changed")

    def make(_, folder):
        (folder / "input").write_text("as it was")
        readings = {
            "traceback": fails,
            "no way out": lambda: "it is broken",
            "control": lambda: "a\x1b[1m; do it",
            "change": changes,
        }
        return cases.Case("any", folder / "input", readings)

    kind = type("Kind", (), {"name": "any", "make": staticmethod(make)})
    causes = " ".join(cases.run(kind, 1, 0, tmp_path).failures())
    for cause in ("KeyError", "no way out", "control characters", "an input file was changed"):
        assert cause in causes


def test_metadata_cannot_write_to_the_terminal(tmp_path):
    path = tmp_path / "a.safetensors"
    save_file({"w": torch.zeros(1)}, path, metadata={"chats.member": "preferred\x1b[2J\n" + "x" * 5000})
    with pytest.raises(PairError) as caught:
        read_metadata(path)
    assert cases.fault_of(str(caught.value)) is None


@pytest.mark.parametrize("damage", [lambda path: path.write_bytes(b"text"), os.mkfifo], ids=["damaged", "pipe"])
def test_a_denoiser_that_is_no_file_is_refused(damage, bases, tmp_path):
    from chats_train.families import load_family
    from chats_train.families.sources import FolderSource

    base = tmp_path / "base"
    base.mkdir()
    for part in bases("sd15").iterdir():
        (base / part.name).symlink_to(part)
    (base / "unet").unlink()
    (base / "unet").mkdir()
    (base / "unet" / "config.json").symlink_to(bases("sd15") / "unet" / "config.json")
    damage(base / "unet" / "diffusion_pytorch_model.safetensors")
    with pytest.raises(UserError, match=r"is not a whole safetensors file \(.*\); download|has no .safetensors file; "):
        load_family("sd15", str(base))
    # Its digest comes to an end all the same.
    assert len(FolderSource(base).digest(["unet"])) == 64


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (LAUGHS + "output_dir: *a9\n", "`output_dir` is `"),
        (MERGES + "data: *m9\n", "is not valid YAML: .* in line"),
        ("seed: !!int x\n", "`x` is no int in line 3"),
        ("seed: " + "9" * 6000 + "\n", "9…` is no int in line 3"),
        ('output_dir: "a\\0b"\n', "has a character that is no text in line 3"),
        ("data: " + "[" * 20_000 + "\n", "it is nested too deep"),
    ],
)
def test_yaml_that_does_harm_is_refused(text, message, tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text("version: 1\nfamily: sd15\n" + text)
    with pytest.raises(UserError, match=message) as caught:
        load_config(path)
    assert all(len(line) < cases.LONGEST_SENTENCE for line in str(caught.value).splitlines())


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ({"prompt": "\ud800"}, "half of a character"),
        ({"chosen_file_name": "/dev/zero"}, "no file is there"),
        ({"chosen_file_name": "a\x00b"}, "no file is there"),
        ({"chosen_file_name": "pipe"}, "no file is there"),
    ],
)
def test_a_row_that_names_no_picture_is_a_problem_of_that_pair(row, problem, config, tmp_path):
    from chats_train.data import open_dataset

    data = write_table(tmp_path / "data", [{}, row])
    os.mkfifo(data / "pipe")
    run = config()
    dataset = open_dataset(run.model_copy(update={"data": run.data.model_copy(update={"path": data})}), progress=False)
    assert len(dataset.samples) == 1
    assert problem in str(dataset.problems[0])


def test_a_table_that_is_no_text_is_refused_and_odd_ends_of_lines_are_not(config, tmp_path):
    from chats_train.data import open_dataset

    data = write_table(tmp_path / "data", [{"prompt": "one\u2028line"}])
    run = config()
    run = run.model_copy(update={"data": run.data.model_copy(update={"path": data})})
    assert open_dataset(run, progress=False).samples[0].prompt == "one\u2028line"
    for content, message in (
        (b"\xff\n", "is not text in UTF-8; save it as such"),
        (b"[" * 100_000, "line 1 of .* is not JSON"),
    ):
        (data / "metadata.jsonl").write_bytes(content)
        with pytest.raises(UserError, match=message):
            open_dataset(run, progress=False)


def write_table(folder: Path, rows: list[dict]) -> Path:
    """A folder with metadata.jsonl; what a row does not state is whole."""
    folder.mkdir()
    lines = []
    for index, row in enumerate(rows):
        whole = {
            "chosen_file_name": f"{index}c.png",
            "rejected_file_name": f"{index}r.png",
            "prompt": f"picture {index}",
        }
        for seed, side in enumerate(("c", "r")):
            (folder / f"{index}{side}.png").write_bytes(png(2 * index + seed))
        # Characters as they are, but for halves, which only an escape can state.
        lines.append(json.dumps({**whole, **row}, ensure_ascii="\ud800" in str(row.get("prompt"))))
    (folder / "metadata.jsonl").write_text("\n".join(lines), encoding="utf-8")
    return folder
