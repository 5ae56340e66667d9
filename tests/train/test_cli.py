"""The command line as a user meets it: instant help, sentences instead of tracebacks, and commands on a tiny base."""

import re
import shlex
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from pictures import write_folders
from safetensors.torch import save_file

from chats_train import cli
from chats_train.arguments import parser
from chats_train.runs.folder import PROBLEMS_FILE
from chats_train.settings.config_file import load_config

ROOT = Path(__file__).resolve().parents[2]


def run(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "chats_train", *arguments], cwd=ROOT, capture_output=True, text=True, check=False
    )


def test_help_is_instant():
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        result = run("--help")
        seconds.append(time.perf_counter() - start)
        assert result.returncode == 0
        assert "write a commented config" in result.stdout
    assert min(seconds) < 1.0


def documented_commands() -> set[str]:
    """Every command of the trainer with its arguments that the README, a page of `docs/`, a workflow's note or a help
    page shows."""
    pages = [page for folder in ("docs", "web/docs") for page in (ROOT / folder).rglob("*.md")]
    files = [ROOT / "README.md", *pages, *(ROOT / "workflows").glob("*.json")]
    text = "\n".join(file.read_text(encoding="utf-8") for file in files)
    found = re.findall(r"python -m chats_train ((?:[\w./=<>-]+[ \t]?)+)", text)
    return {command.strip() for command in found if " " in command.strip()}


def test_documented_commands_exist():
    commands = documented_commands()
    assert {command.split()[0] for command in commands} >= {"init", "check", "train", "extract", "evaluate"}
    for command in sorted(commands):
        parser(cli.RUNS).parse_args(shlex.split(command))  # a wrong one exits


def test_help_imports_nothing_heavy():
    code = "import sys; from chats_train.cli import RUNS, parser; parser(RUNS).format_help(); print(*sys.modules)"
    loaded = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split()
    assert not {"torch", "diffusers", "transformers", "datasets", "pydantic", "numpy", "PIL"} & set(loaded)


def test_a_user_error_is_a_sentence_and_status_2():
    result = run("check", "nowhere.yaml")
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.startswith("error: the config nowhere.yaml cannot be read (No such file or directory);")
    assert result.stderr.count("\n") == 1


def test_init_writes_a_valid_config_and_never_over_another(tmp_path, capsys):
    path = tmp_path / "run.yaml"
    assert cli.main(["init", "sdxl", "--output", str(path)]) == 0
    assert load_config(path).family == "sdxl"
    before = path.read_bytes()
    assert cli.main(["init", "sd15", "--output", str(path)]) == 2
    assert path.read_bytes() == before
    assert "which is there already" in capsys.readouterr().err
    assert cli.main(["init", "sdlx", "--output", str(tmp_path / "other.yaml")]) == 2
    assert "did you mean sdxl?" in capsys.readouterr().err


def test_wrong_settings_come_one_a_line(tmp_path, capsys):
    cli.main(["init", "sdxl", "--output", str(tmp_path / "run.yaml")])
    assert cli.main(["check", str(tmp_path / "run.yaml"), "--set", "sed=1", "--set", "beta=0"]) == 2
    errors = capsys.readouterr().err.splitlines()
    assert [line.startswith("error: `") for line in errors] == [True, True]


def test_inspect(tmp_path, capsys):
    save_file({"joint_blocks.0.context_block.attn.qkv.weight": torch.zeros(9, 3)}, tmp_path / "m.safetensors")
    assert cli.main(["inspect", str(tmp_path / "m.safetensors")]) == 0
    assert "SD3 (native layout) diffusion model" in capsys.readouterr().out
    (tmp_path / "m.ckpt").write_bytes(b"pickle")
    assert cli.main(["inspect", str(tmp_path / "m.ckpt")]) == 2
    assert "can run code when it is opened" in capsys.readouterr().err


def test_trouble_with_the_disk_is_a_sentence(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert cli.main(["init", "sdxl", "--output", str(tmp_path / "file" / "run.yaml")]) == 2
    assert capsys.readouterr().err.startswith("error: ")


def test_a_fault_of_ours_is_not_hidden(monkeypatch):
    def fault(_):
        raise ValueError("not written for users")

    monkeypatch.setitem(cli.RUNS, "inspect", fault)
    with pytest.raises(ValueError, match="not written for users"):
        cli.main(["inspect", "x"])


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    pytest.importorskip("chats_train.families")
    import tiny_pipelines

    return tiny_pipelines.save_pipeline("sd15", tmp_path_factory.mktemp("base") / "sd15")


@pytest.fixture
def config(base, tmp_path):
    write_folders(tmp_path / "pairs", ("a", "b", "broken"))
    (tmp_path / "pairs" / "chosen" / "broken.png").write_bytes(b"no image")
    (tmp_path / "run.yaml").write_text(
        f"version: 1\nfamily: sd15\noutput_dir: {tmp_path / 'run'}\npretrained_model: {base}\ndata: {{path: "
        f"{tmp_path / 'pairs'}}}\n"
        "resolution: 64\nbucket_reso_steps: 16\nmixed_precision: no\n",
        encoding="utf-8",
    )
    return tmp_path / "run.yaml"


def test_check_tells_what_a_run_will_take(config, capsys):
    changes = ("training_method=full", "weight_dtype=bf16", "reference_draws=4")
    assert cli.main(["check", str(config), *(part for change in changes for part in ("--set", change))]) == 0
    said = capsys.readouterr().out
    assert "note: `reference_draws` is 4 and the run visits a pair 16000 times" in said
    assert "(epsilon, null prompt encoded_empty): unet " in said
    assert "data: pairs: 2 pairs" in said
    assert "broken: broken image (chosen: not an image)" in said
    assert "full, weight_dtype bf16: " in said
    assert said.count("(this run)") == 1
    assert (config.parent / "run" / PROBLEMS_FILE).read_text() == "broken: broken image (chosen: not an image)\n"
    assert cli.main(["check", str(config), "--set", "data.strict=true"]) == 2
    assert "`data.strict` is true and pairs has 1 problems" in capsys.readouterr().err


def test_check_names_a_base_that_is_not_there(config, capsys):
    assert cli.main(["check", str(config), "--set", "pretrained_model=/nowhere/base"]) == 2
    assert "`pretrained_model` is `/nowhere/base`" in capsys.readouterr().err


def test_check_refuses_a_full_disk(config, capsys, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 1000}))
    assert cli.main(["check", str(config)]) == 2
    assert "which lacks" in capsys.readouterr().err


def test_cache_makes_what_a_pair_needs(config, capsys):
    from chats_train.data import open_dataset
    from chats_train.encodings.cache import CachedEncodings
    from chats_train.runs.opening import open_family

    assert cli.main(["cache", str(config), "--set", "sample_prompts=[a preview]"]) == 0
    assert "2 pairs" in capsys.readouterr().out
    settings = load_config(config)
    family = open_family(settings)
    cached = CachedEncodings(settings.cache_dir, family.fingerprint)
    for sample in open_dataset(settings, progress=False).samples:
        encoded = cached.pair(sample)
        assert encoded.chosen.shape == (4, sample.bucket.height // 8, sample.bucket.width // 8)
        torch.testing.assert_close(encoded.prompt["tokens"], family.encode_prompt([sample.prompt])["tokens"][0])
    assert cached.prompt("a preview")["tokens"].shape == cached.prompt("")["tokens"].shape
