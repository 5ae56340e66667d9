"""Whole runs on tiny real pipelines: what they leave behind, how they end, and that a kill costs nothing."""

import json
import os
import signal
import stat
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
import torch
from loaded_process import start_trainer
from PIL import Image
from safetensors.torch import load_file

from chats.pair import check_files, read_header
from chats_train.cli import main
from chats_train.encodings.shards import ShardStore
from chats_train.inspection import describe
from chats_train.runs.checkpoint import READ, RESUME, Checkpoint, State, open_checkpoint, save_checkpoint
from chats_train.settings.facts import FAMILIES
from chats_train.support.errors import UserError


def newest(run) -> Checkpoint | None:
    """The checkpoint that the run would go on from."""
    return open_checkpoint(run.output_dir / "checkpoints", "latest", RESUME)


def damage(path):
    """Changes the last byte."""
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))


@pytest.mark.parametrize(
    ("family", "method"),
    [
        (family, method)
        for family in ("sdxl", "sd3", "flux", "z_image", "qwen_image", "chroma", "flux2_klein", "krea2")
        for method in ("lora", "full")
    ],
)
def test_every_family_trains_resumes_and_exports(family, method, config, tmp_path):
    from chats_train.training.train import train

    settings = dict(training_method=method, max_train_steps=2, checkpointing_steps=1, validation_pairs=0)
    settings |= dict(gradient_accumulation_steps=1)
    whole = config(family, "whole", **settings)
    train(whole)
    # At α = 0 no probe is made, which costs more than the steps.
    first = config(family, "parts", **settings, lr_scheduler="constant", alpha=0.0)
    train(first.model_copy(update={"max_train_steps": 1}))
    train(first.model_copy(update={"resume_from_checkpoint": "latest"}))
    weights = [
        load_file(run.output_dir / "checkpoints" / "step-00000002" / "members.safetensors") for run in (whole, first)
    ]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    assert (whole.output_dir / "proxy_probe.json").exists() == ("proxy" in FAMILIES[family].forms)
    assert sorted(path.name for path in whole.output_dir.glob("*.safetensors")) == [
        "whole_dispreferred.safetensors",
        "whole_preferred.safetensors",
    ]


def test_a_run_leaves_what_its_maker_looks_at(config, capsys, tmp_path):
    run = config(training_method="lora", sample_every=3, sample_prompts=["a b"], sample_steps=2, ema_decay=0.9)
    path = tmp_path / "run.yaml"
    path.write_text(json.dumps(run.model_dump(mode="json")))
    assert main(["train", str(path)]) == 0
    assert "trained 6 steps" in capsys.readouterr().out
    folder = run.output_dir
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5, 6]
    assert "validation_loss" in rows[2]
    assert "validation_loss" not in rows[1]
    assert {"z", "gate", "implicit_accuracy", "delta_chosen", "delta_rejected", "grad_norm", "learning_rate"} <= set(
        rows[0]
    )
    for picture in ("loss.png", "previews/step-00000003.png", "previews/step-00000006.png"):
        with Image.open(folder / picture) as image:
            image.verify()
    checkpoints = sorted(path.name for path in (folder / "checkpoints").iterdir())
    assert checkpoints == ["step-00000002", "step-00000004", "step-00000006"]
    assert main(["sample", str(path), "--prompt", "a c", "--form", "exact", "--output", str(tmp_path / "s.png")]) == 0
    assert main(["export", str(path), "--output", str(tmp_path / "out"), "--dtype", "fp32"]) == 0
    exported = load_file(tmp_path / "out" / "run_preferred.safetensors")
    assert read_header(tmp_path / "out" / "run_preferred.safetensors") == read_header(
        folder / "run_preferred.safetensors"
    )
    assert check_files(*(folder / f"run_{member}.safetensors" for member in ("preferred", "dispreferred")))[1] == []
    averages = load_file(folder / "checkpoints" / "step-00000006" / "averages.safetensors")
    name, value = next(
        (name, value) for name, value in averages.items() if name.startswith("preferred.") and "lora_A" in name
    )
    layer = name.removeprefix("preferred.").removesuffix(".lora_A.preferred.weight").replace(".", "_")
    assert any(torch.equal(tensor, value) for key, tensor in exported.items() if "lora_down" in key), layer


def test_tensorboard_gets_every_metric(config):
    pytest.importorskip("tensorboard", reason="`pip install tensorboard` tests what it is given")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    from chats_train.training.train import train

    run = config(report_to="tensorboard", max_train_steps=3)
    train(run)
    found = EventAccumulator(str(run.output_dir / "tensorboard")).Reload()
    rows = [json.loads(line) for line in (run.output_dir / "metrics.jsonl").read_text().splitlines()]
    names = {name for row in rows for name in row} - {"step"}
    assert {"loss", "validation_loss", "grad_norm"} <= names == set(found.Tags()["scalars"])
    for name in names:
        written = [(row["step"], pytest.approx(row[name])) for row in rows if name in row]
        assert [(event.step, event.value) for event in found.Scalars(name)] == written


def test_tensorboard_that_is_missing_is_a_sentence(tmp_path, monkeypatch):
    from chats_train.training.reports import Reports

    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(
        UserError, match="`report_to` is tensorboard, which is not installed; `pip install tensorboard`"
    ):
        Reports(tmp_path, 0, tensorboard=True)


def test_a_probe_that_fails_costs_no_pair(config, monkeypatch, capsys):
    from chats_train.training import train as run

    def out_of_memory(trainer):
        raise torch.OutOfMemoryError("out of memory")

    monkeypatch.setattr(run, "probe_trained", out_of_memory)
    run.train(config(max_train_steps=1, checkpointing_steps=1, validation_pairs=0))
    assert "exported without a probe of its proxy prompt, which failed (out of memory)" in capsys.readouterr().out
    assert (config().output_dir / "run_preferred.safetensors").exists()


def test_the_probe_is_of_its_own_step_and_a_number(tmp_path):
    from chats_train.runs.probe_file import FILE, read_probe

    assert read_probe(tmp_path, 6) == {}
    (tmp_path / FILE).write_text('{"step": 6, "alpha": 0.5, "cosine": 0.25, "relative_error": 1.5}')
    assert read_probe(tmp_path, 6) == {"proxy_cosine": 0.25, "proxy_relative_error": 1.5}
    assert read_probe(tmp_path, 5) == {}
    (tmp_path / FILE).write_text('{"step": 6, "alpha": 0.5, "cosine": NaN, "relative_error": NaN}')
    assert read_probe(tmp_path, 6) == {}, "a file that says nan could not be read"


def test_a_second_run_does_not_take_over_the_first_ones_folder(config):
    from chats_train.training.train import train

    run = config(max_train_steps=2)
    train(run)
    with pytest.raises(UserError, match="has checkpoints of an earlier run; set `resume_from_checkpoint: latest`"):
        train(run)


def test_a_run_that_is_killed_ends_bitwise_as_one_that_is_not(config, tmp_path):
    """SIGKILL at a moment after a step's checkpoint; `benchmarks/kills.py` does it a hundred times, with other
    settings."""
    settings = {"training_method": "full", "optimizer": "adafactor", "ema_decay": 0.9, "weight_dtype": "bf16"}
    from chats_train.training.train import train

    whole, killed = (
        config(output=name, max_train_steps=5, checkpointing_steps=1, **settings) for name in ("whole", "killed")
    )
    train(whole)
    path, folder = tmp_path / "killed.yaml", killed.output_dir
    path.write_text(json.dumps(killed.model_dump(mode="json") | {"resume_from_checkpoint": "latest"}))
    process = start_trainer(tmp_path / "log", "train", path)
    while process.is_alive() and not (folder / "checkpoints" / "step-00000002").exists():
        time.sleep(0.02)
    process.kill()
    process.join()
    assert process.exitcode == -signal.SIGKILL, (tmp_path / "log").read_text()
    assert not (folder / "checkpoints" / "step-00000005").exists()
    process = start_trainer(tmp_path / "log", "train", path)
    process.join()
    assert process.exitcode == 0, (tmp_path / "log").read_text()
    for name in ("members.safetensors", "optimizer.safetensors", "averages.safetensors"):
        files = [run.output_dir / "checkpoints" / "step-00000005" / name for run in (whole, killed)]
        assert files[0].read_bytes() == files[1].read_bytes(), name
    metrics = [(run.output_dir / "metrics.jsonl").read_text().splitlines() for run in (whole, killed)]
    rows = [[json.loads(line)["loss"] for line in lines] for lines in metrics]
    assert rows[0] == rows[1]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_and_ends_well(number, config, tmp_path):
    run = config(max_train_steps=100000, checkpointing_steps=100000, training_method="full")
    path = tmp_path / "run.yaml"
    path.write_text(json.dumps(run.model_dump(mode="json")))
    process = start_trainer(tmp_path / "log", "train", path)
    while (
        not (run.output_dir / "metrics.jsonl").exists()
        or (run.output_dir / "metrics.jsonl").read_text().count("\n") < 2
    ):
        assert process.is_alive(), (tmp_path / "log").read_text()
        time.sleep(0.05)
    os.kill(process.pid, number)
    process.join(timeout=60)
    output = (tmp_path / "log").read_text()
    assert process.exitcode == 0, output
    assert "stopped after step " in output.strip().splitlines()[-1]
    assert newest(run) is not None


def test_a_nan_stops_and_names_the_last_good_checkpoint(config, monkeypatch):
    from chats_train.training.train import train

    run = config(
        training_method="full", learning_rate=1e30, lr_warmup_steps=0, max_grad_norm=0.0, checkpointing_steps=1
    )
    with pytest.raises(
        UserError, match=r"step \d+: the loss is .*; go on from .*step-0000000\d, with a lower `learning_rate`"
    ):
        train(run)
    assert all(tensor.isfinite().all() for tensor in newest(run).tensors("members").values())


def test_a_damaged_checkpoint_is_never_used(config, capsys):
    from chats_train.training.train import train

    run = config(max_train_steps=4, checkpointing_steps=1, checkpoints_total_limit=2)
    train(run)
    folder = run.output_dir / "checkpoints"
    damaged = folder / "step-00000004"
    assert sorted(path.name for path in folder.iterdir()) == ["step-00000003", "step-00000004"]
    damage(damaged / "members.safetensors")
    assert newest(run).path == folder / "step-00000003"
    said = f"{damaged} cannot be used: members.safetensors is not as it was written; an older one is looked for\n"
    assert capsys.readouterr().err.endswith(said)
    for purpose in (RESUME, READ):
        with pytest.raises(UserError, match=r"members.safetensors is not as it was written"):
            open_checkpoint(folder, str(damaged), purpose)
    (damaged / "manifest.json").unlink()
    with pytest.raises(UserError, match=r"manifest.json is missing"):
        open_checkpoint(folder, str(damaged), RESUME)


OPENED: list[Path] = []


@pytest.fixture(scope="module")
def opened():
    """Every file that Python opens from now on, whoever opens it: what is hashed is read by Python."""

    def note(event, arguments):
        if event == "open" and isinstance(arguments[0], str):
            OPENED.append(Path(arguments[0]))

    sys.addaudithook(note)
    return OPENED


def test_a_checkpoint_is_read_as_far_as_needed_and_proven_once(config, opened, tmp_path):
    """Resuming proves every file, the commands that only look at the weights prove those."""
    from chats_train.training.train import train

    run = config(
        max_train_steps=2, checkpointing_steps=1, validation_pairs=0, ema_decay=0.9, sample_steps=1, seed=1, alpha=0.0
    )
    train(run)
    folder = run.output_dir / "checkpoints" / "step-00000002"
    path = tmp_path / "run.yaml"
    path.write_text(json.dumps(run.model_dump(mode="json")))
    (tmp_path / "prompts.txt").write_text("a b\n")
    evaluation = ["--prompts", str(tmp_path / "prompts.txt"), "--seeds", "1", "--steps", "1"]
    commands = {
        "export": [],
        "sample": ["--prompt", "a b", "--output", str(tmp_path / "s.png")],
        "evaluate": evaluation,
        "train": ["--set", "resume_from_checkpoint=latest"],
    }
    for command, arguments in commands.items():
        opened.clear()
        assert main([command, str(path), *arguments]) == 0
        proven = Counter(file.name for file in opened if file.parent == folder and file.suffix == ".safetensors")
        groups = ("averages", "members", "optimizer") if command == "train" else ("averages",)
        assert proven == {f"{group}.safetensors": 1 for group in groups}, command
    # What is proven by its size alone is not loaded either.
    for group in ("members", "optimizer"):
        content = (folder / f"{group}.safetensors").read_bytes()
        (folder / f"{group}.safetensors").write_bytes(b"?" * len(content))
    for command in ("export", "sample", "evaluate"):
        assert main([command, str(path), *commands[command]]) == 0


@pytest.mark.skipif(os.name == "nt", reason="Windows has no umask")
def test_checkpoints_and_the_cache_can_be_read_by_whom_the_umask_lets(tmp_path):
    before = os.umask(0o027)
    try:
        saved = save_checkpoint(tmp_path / "checkpoints", State(1, {"members": {"a": torch.ones(3)}}, {}), None)
        store = ShardStore(tmp_path / "cache")
        store.add({"k": {"a": torch.ones(2)}})
        store.flush()
    finally:
        os.umask(before)
    written = [*saved.iterdir(), *store.folder.iterdir()]
    assert len(written) == 4
    assert {stat.S_IMODE(path.stat().st_mode) for path in written} == {0o640}


def test_what_a_damaged_optimizer_keeps_from(tmp_path):
    """A run does not go on from it. Its weights, which are proven right, can be used where the files have their
    sizes."""
    tensors = {"members": {"a": torch.ones(3)}, "optimizer": {"0.step": torch.ones(5)}}
    older, damaged = (save_checkpoint(tmp_path, State(step, tensors, {}), None) for step in (1, 2))
    damage(damaged / "optimizer.safetensors")
    assert open_checkpoint(tmp_path, "latest", RESUME).path == older
    assert open_checkpoint(tmp_path, "latest", READ).path == damaged
    with pytest.raises(UserError, match=r"optimizer.safetensors is not as it was written; set `resume_from_checkpoint"):
        open_checkpoint(tmp_path, str(damaged), RESUME)
    with pytest.raises(UserError, match=r"optimizer.safetensors is not as it was written; name another"):
        open_checkpoint(tmp_path, str(damaged), READ).tensors("optimizer")
    (damaged / "optimizer.safetensors").write_bytes(b"short")
    with pytest.raises(UserError, match=r"optimizer.safetensors is not as it was written"):
        open_checkpoint(tmp_path, str(damaged), READ)
    (damaged / "optimizer.safetensors").unlink()
    with pytest.raises(UserError, match=r"optimizer.safetensors is missing"):
        open_checkpoint(tmp_path, str(damaged), READ)
    assert open_checkpoint(tmp_path, "latest", READ).path == older


@pytest.mark.parametrize(
    ("manifest", "reason"),
    [
        ("{", "its manifest.json is damaged"),
        ('{"version": 1, "files": [1]}', "its manifest.json is damaged"),
        ('{"version": 1, "files": {"members.safetensors": {"bytes": 3}}}', "its manifest.json is damaged"),
        ('{"version": 1, "files": {}}', "state.json is missing"),
        ('{"version": 2}', "its version is 2, this trainer reads 1"),
    ],
)
def test_a_manifest_that_says_something_else_is_a_sentence(manifest, reason, tmp_path):
    (tmp_path / "manifest.json").write_text(manifest)
    with pytest.raises(UserError, match=f"{tmp_path} cannot be used: {reason}; name another with `--checkpoint`"):
        open_checkpoint(tmp_path, str(tmp_path), READ)


def test_a_checkpoint_that_cannot_be_read_names_the_option_that_chose_it(config):
    from chats_train.runs.trained import export, sample
    from chats_train.training.train import train

    run = config(max_train_steps=1, checkpointing_steps=1, validation_pairs=0, network_rank=2)
    train(run)
    with pytest.raises(
        UserError, match=r"nowhere cannot be used: there is no such folder; name another with `--checkpoint`"
    ):
        export(run, "nowhere")
    other = run.model_copy(update={"network_rank": 4})
    with pytest.raises(UserError, match=r"of another model than this run; .*, or name another with `--checkpoint`"):
        sample(other, "latest", ["a b"], "proxy")
    with pytest.raises(
        UserError, match=r"of another model than this run; .* or set `resume_from_checkpoint` to another, or to null"
    ):
        train(other.model_copy(update={"resume_from_checkpoint": "latest", "max_train_steps": 2}))
    again = {"resume_from_checkpoint": "latest", "max_train_steps": 2, "optimizer": "adafactor"}
    with pytest.raises(UserError, match=r"`optimizer` is adafactor, .* with adamw, .* set `optimizer: adamw`, or `res"):
        train(run.model_copy(update=again))
    with pytest.raises(UserError, match="step-00000001 is a folder; name a file in it"):
        describe(run.output_dir / "checkpoints" / "step-00000001")
    with pytest.raises(
        UserError, match=r"has no whole checkpoint; train first, or name one's folder with `--checkpoint`"
    ):
        export(run.model_copy(update={"output_dir": run.output_dir / "nowhere"}), "latest")
    with pytest.raises(
        UserError, match=r"`training_method` is full, but the checkpoint .* was trained with lora; set it to that"
    ):
        export(run.model_copy(update={"training_method": "full"}), "latest")
