"""The loop on tiny real pipelines: gradients, resuming, processes, what a run leaves behind."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import tiny_pipelines
import torch
from PIL import Image
from safetensors.torch import load_file

from chats.objective import OBJECTIVES
from chats.pair import check_files, read_header
from chats_train.cache import CachedEncodings, fill_cache
from chats_train.cli import main
from chats_train.config_file import parse_config
from chats_train.data import open_dataset
from chats_train.errors import UserError
from chats_train.training import checkpoint
from chats_train.training.draws import draw, held_out, step_pairs
from chats_train.training.gradients import Gradients, make_batch
from chats_train.training.members import make_members
from chats_train.training.optimizer import learning_rate, make_optimizer, stochastic_round
from chats_train.training.processes import Processes
from chats_train.training.trainer import Trainer, micro_batches
from chats_train.wiring import open_family

PAIRS = 12
SETTINGS = {
    "mixed_precision": "no",
    "gradient_checkpointing": False,
    "resolution": 64,
    "bucket_reso_steps": 32,
    "train_batch_size": 2,
    "gradient_accumulation_steps": 2,
    "max_train_steps": 6,
    "checkpointing_steps": 2,
    "lr_warmup_steps": 2,
    "validation_pairs": 2,
    "validation_steps": 3,
    "learning_rate": 1e-4,
}


@pytest.fixture(scope="session")
def bases(tmp_path_factory):
    """A tiny base of a family, made once."""
    made = {}

    def base(family: str) -> Path:
        if family not in made:
            made[family] = tiny_pipelines.save_pipeline(family, tmp_path_factory.mktemp(family))
        return made[family]

    return base


@pytest.fixture(scope="session")
def pictures(tmp_path_factory) -> Path:
    """Pairs as two folders with captions, in two aspect ratios."""
    folder = tmp_path_factory.mktemp("pairs")
    generator = torch.Generator().manual_seed(0)
    for side in ("chosen", "rejected"):
        (folder / side).mkdir()
        for index in range(PAIRS):
            height, width = (64, 64) if index % 3 else (48, 80)
            content = torch.randint(0, 256, (height, width, 3), generator=generator, dtype=torch.uint8).numpy()
            Image.fromarray(content).save(folder / side / f"{index:02}.png")
            (folder / side / f"{index:02}.txt").write_text(f"a picture {chr(97 + index)}")
    return folder


@pytest.fixture
def config(bases, pictures, tmp_path):
    """A run's settings; each gets a folder of its own."""

    def make(family="sd15", output="run", **settings):
        raw = {"version": 1, "family": family, "pretrained_model": str(bases(family)), "data": {"path": str(pictures)}, **SETTINGS}
        return parse_config({**raw, "output_dir": str(tmp_path / output), "cache_dir": str(tmp_path / f"cache-{family}"), **settings})

    return make


def trainer_of(config) -> Trainer:
    family, dataset = open_family(config, "cpu"), open_dataset(config, progress=False)
    fill_cache(config.cache_dir, dataset.samples, family, progress=False)
    return Trainer(config, family, dataset, CachedEncodings(config.cache_dir, family.fingerprint), Processes())


def batch_of(trainer, seed=0):
    """The first micro-batch of the first step."""
    picked = micro_batches(step_pairs(trainer.samples, seed, 0, 4), 2)[0]
    pairs = [trainer.encodings.pair(sample) for _, sample in picked]
    draws = [draw(seed, epoch, sample.id, pair.chosen.shape) for (epoch, sample), pair in zip(picked, pairs, strict=True)]
    return make_batch(trainer.family, pairs, draws, trainer.null, 0.5, torch.device("cpu"))


def moved(trainer):
    """The members a little away from the base, each its own way, so that Δ and the gate are not at their first values."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in trainer.parameters.values():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.01)
    return trainer


def joint_gradient(trainer, batch) -> dict[str, torch.Tensor]:
    """Autograd on the loss itself, with every graph alive at once and without gradient checkpointing."""
    members, family = trainer.members, trainer.family

    def error(denoiser, side):
        for parameter in trainer.parameters.values():
            parameter.requires_grad_()  # PEFT turns it off for the adapter that is not active
        prediction = family.predict(denoiser, side.noisy, side.timesteps, side.prompt, side.sizes)
        return (side.target - prediction).square().mean(dim=(1, 2, 3))

    for module in {id(m): m for m in (members.denoiser(name) for name in members.names)}.values():
        module.disable_gradient_checkpointing()
    with torch.no_grad():
        references = [error(members.reference(), side) for side in (batch.chosen, batch.rejected)]
    delta = error(members.denoiser("preferred"), batch.chosen) - references[0]
    delta = delta + error(members.denoiser("dispreferred"), batch.rejected) - references[1]
    loss = -torch.log(torch.sigmoid(-trainer.config.beta * delta)).sum()
    leaves = trainer.parameters
    return dict(zip(leaves, torch.autograd.grad(loss, list(leaves.values()), allow_unused=True), strict=True))


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("memory", ["normal", "low"])
@pytest.mark.parametrize("method", ["full", "lora"])
def test_the_gradient_is_the_joint_one(method, memory, checkpointing, config):
    settings = dict(training_method=method, memory=memory, gradient_checkpointing=checkpointing, beta=20.0, network_rank=4)
    trainer = moved(trainer_of(config(**settings)))
    batch = batch_of(trainer)
    trainer.gradients.backward(batch, 1.0)
    actual = {name: parameter.grad for name, parameter in trainer.parameters.items()}
    expected = joint_gradient(trainer, batch)
    assert {name for name, gradient in expected.items() if gradient is not None} == {n for n, g in actual.items() if g is not None}
    vectors = [torch.cat([g.flatten() for g in gradients.values() if g is not None]) for gradients in (expected, actual)]
    assert torch.linalg.vector_norm(vectors[0] - vectors[1]) / torch.linalg.vector_norm(vectors[0]) < 1e-6
    for member in trainer.members.names:
        assert any(g is not None and g.any() for name, g in actual.items() if name.startswith(f"{member}."))


def test_the_reference_is_the_base_for_both_methods(config):
    """At the first step both members equal the reference: Δ = 0, z = 0, loss = log 2."""
    for method in ("full", "lora"):
        trainer = trainer_of(config(training_method=method, output=method))
        losses, metrics = trainer.gradients.measure(batch_of(trainer))
        assert torch.allclose(losses, torch.full_like(losses, 2.0).log())
        assert metrics["delta_chosen"].abs().max() == 0
        trainer = moved(trainer)
        reference = trainer.gradients._reference_errors(batch_of(trainer))
        base = make_members(trainer.config, trainer.family, 2, True, trainer.device)
        plain = Gradients(trainer.family, base, OBJECTIVES["chats"], 1.0, trainer.device)
        for name, value in plain._reference_errors(batch_of(trainer)).items():
            assert torch.equal(value, reference[name])


@pytest.mark.parametrize("objective", sorted(OBJECTIVES))
def test_every_objective_trains(objective, config):
    trainer = trainer_of(config(objective=objective, training_method="full", beta=10.0))
    before = {name: value.clone() for name, value in trainer.members.state().items()}
    reports = [trainer.train_step() for _ in range(2)]
    assert all(torch.isfinite(torch.tensor(list(report.metrics.values()))).all() for report in reports)
    after = trainer.members.state()
    assert any(not torch.equal(before[name], after[name]) for name in after)
    assert {name.split(".")[0] for name in after} == set(trainer.members.names)
    assert len(trainer.members.names) == OBJECTIVES[objective].models


@pytest.mark.parametrize(("family", "method"), [("sdxl", "full"), ("sdxl", "lora"), ("sd3", "full"), ("sd3", "lora"), ("flux", "lora")])
def test_every_family_trains_resumes_and_exports(family, method, config, tmp_path):
    from chats_train.training.run import train

    settings = dict(training_method=method, max_train_steps=3, checkpointing_steps=1, validation_pairs=0)
    whole = config(family, "whole", **settings)
    train(whole)
    first = config(family, "parts", **settings, lr_scheduler="constant")
    train(first.model_copy(update={"max_train_steps": 1}))
    train(first.model_copy(update={"resume_from_checkpoint": "latest"}))
    weights = [load_file(run.output_dir / "checkpoints" / "step-00000003" / "members.safetensors") for run in (whole, first)]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
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
    assert {"z", "gate", "implicit_accuracy", "delta_chosen", "delta_rejected", "grad_norm", "learning_rate"} <= set(rows[0])
    for picture in ("loss.png", "previews/step-00000003.png", "previews/step-00000006.png"):
        with Image.open(folder / picture) as image:
            image.verify()
    checkpoints = sorted(path.name for path in (folder / "checkpoints").iterdir())
    assert checkpoints == ["step-00000002", "step-00000004", "step-00000006"]
    assert main(["sample", str(path), "--prompt", "a c", "--form", "exact", "--output", str(tmp_path / "s.png")]) == 0
    assert main(["export", str(path), "--output", str(tmp_path / "out"), "--dtype", "fp32"]) == 0
    exported = load_file(tmp_path / "out" / "run_preferred.safetensors")
    assert read_header(tmp_path / "out" / "run_preferred.safetensors") == read_header(folder / "run_preferred.safetensors")
    assert check_files(*(folder / f"run_{member}.safetensors" for member in ("preferred", "dispreferred")))[1] == []
    averages = load_file(folder / "checkpoints" / "step-00000006" / "averages.safetensors")
    name, value = next((name, value) for name, value in averages.items() if name.startswith("preferred.") and "lora_A" in name)
    layer = name.removeprefix("preferred.").removesuffix(".lora_A.preferred.weight").replace(".", "_")
    assert any(torch.equal(tensor, value) for key, tensor in exported.items() if "lora_down" in key), layer


def test_a_second_run_does_not_take_over_the_first_ones_folder(config):
    from chats_train.training.run import train

    run = config(max_train_steps=2)
    train(run)
    with pytest.raises(UserError, match="has checkpoints of an earlier run; set `resume_from_checkpoint: latest`"):
        train(run)


COMMAND = [sys.executable, "-m", "chats_train", "train"]


# SIGKILL at a moment after the checkpoint of each of these steps.
@pytest.mark.parametrize(
    ("settings", "kills"),
    [
        ({"training_method": "full", "optimizer": "adafactor", "ema_decay": 0.9}, (3, 7)),
        ({"training_method": "full", "weight_dtype": "bf16"}, (5,)),
    ],
    ids=["adafactor with averages", "bf16"],
)
def test_a_run_that_is_killed_ends_bitwise_as_one_that_is_not(settings, kills, config, tmp_path):
    runs = {}
    for name in ("whole", "killed"):
        run = config(output=name, max_train_steps=12, checkpointing_steps=1, **settings)
        path = tmp_path / f"{name}.yaml"
        path.write_text(json.dumps(run.model_dump(mode="json") | {"resume_from_checkpoint": "latest"}))
        runs[name] = (run.output_dir, path)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run([*COMMAND, runs["whole"][1]], check=True, capture_output=True, env=environment)
    folder, path = runs["killed"]
    for target in kills:
        process = subprocess.Popen([*COMMAND, path], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment)
        while process.poll() is None and not (folder / "checkpoints" / f"step-{target:08d}").exists():
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
        process.wait()
    subprocess.run([*COMMAND, path], check=True, capture_output=True, env=environment)
    names = ["members.safetensors", "optimizer.safetensors"] + (["averages.safetensors"] if "ema_decay" in settings else [])
    for name in names:
        files = [root / "checkpoints" / "step-00000012" / name for root, _ in runs.values()]
        assert files[0].read_bytes() == files[1].read_bytes(), name
    rows = [[json.loads(line)["loss"] for line in (root / "metrics.jsonl").read_text().splitlines()] for root, _ in runs.values()]
    assert rows[0] == rows[1]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_and_ends_well(number, config, tmp_path):
    run = config(max_train_steps=100000, checkpointing_steps=100000, training_method="full")
    path = tmp_path / "run.yaml"
    path.write_text(json.dumps(run.model_dump(mode="json")))
    process = subprocess.Popen([*COMMAND, path], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    while not (run.output_dir / "metrics.jsonl").exists() or (run.output_dir / "metrics.jsonl").read_text().count("\n") < 2:
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(number)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    assert output.strip().splitlines()[-1].startswith("stopped after step ")
    assert checkpoint.find_checkpoint(run.output_dir / "checkpoints", "latest") is not None


def test_a_nan_stops_and_names_the_last_good_checkpoint(config, monkeypatch):
    from chats_train.training.run import train

    run = config(training_method="full", learning_rate=1e30, lr_warmup_steps=0, max_grad_norm=0.0, checkpointing_steps=1)
    with pytest.raises(UserError, match=r"step \d+: the loss is .*; go on from .*step-0000000\d, with a lower `learning_rate`"):
        train(run)
    good = checkpoint.find_checkpoint(run.output_dir / "checkpoints", "latest")
    assert all(tensor.isfinite().all() for tensor in load_file(good / "members.safetensors").values())


def test_a_damaged_checkpoint_is_never_used(config):
    from chats_train.training.run import train

    run = config(max_train_steps=4, checkpointing_steps=1, checkpoints_total_limit=2)
    train(run)
    folder = run.output_dir / "checkpoints"
    newest = folder / "step-00000004"
    assert sorted(path.name for path in folder.iterdir()) == ["step-00000003", "step-00000004"]
    content = (newest / "members.safetensors").read_bytes()
    (newest / "members.safetensors").write_bytes(content[:-1] + b"\x00" if content[-1:] != b"\x00" else content[:-1] + b"\x01")
    assert checkpoint.find_checkpoint(folder, "latest") == folder / "step-00000003"
    with pytest.raises(UserError, match=r"members.safetensors is not as it was written"):
        checkpoint.load_checkpoint(newest)
    (newest / "manifest.json").unlink()
    with pytest.raises(UserError, match=r"manifest.json is missing"):
        checkpoint.load_checkpoint(newest)


WORKER = """
import json, sys
sys.path[:0] = [{root!r}, {here!r}]
from test_training import trainer_of
from chats_train.config_file import parse_config
trainer = trainer_of(parse_config(json.loads(sys.argv[1])))
report = trainer.train_step()
if trainer.processes.is_main:
    from safetensors.torch import save_file
    save_file({{name: p.grad for name, p in trainer.parameters.items() if p.grad is not None}}, sys.argv[2])
    print(json.dumps(report.metrics))
"""


@pytest.mark.parametrize("method", ["full", "lora"])
def test_two_processes_have_the_gradients_of_one(method, config, tmp_path):
    alone = trainer_of(config(training_method=method, gradient_accumulation_steps=4, max_grad_norm=0.0))
    report = alone.train_step()
    expected = {name: parameter.grad for name, parameter in alone.parameters.items() if parameter.grad is not None}

    root = str(Path(__file__).resolve().parents[2])
    (tmp_path / "worker.py").write_text(WORKER.format(root=root, here=str(Path(__file__).parent)))
    run = config(training_method=method, gradient_accumulation_steps=2, max_grad_norm=0.0).model_dump(mode="json")
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--master-port=0", "--standalone"]
    command = [*launch, tmp_path / "worker.py", json.dumps(run), tmp_path / "gradients.safetensors"]
    result = subprocess.run(command, capture_output=True, text=True, cwd=root, env={**os.environ, "OMP_NUM_THREADS": "1"}, check=False)
    assert result.returncode == 0, result.stderr[-3000:]
    actual = load_file(tmp_path / "gradients.safetensors")
    assert set(actual) == set(expected)
    vectors = [torch.cat([gradients[name].flatten() for name in sorted(expected)]) for gradients in (expected, actual)]
    assert torch.linalg.vector_norm(vectors[0] - vectors[1]) / torch.linalg.vector_norm(vectors[0]) < 1e-6
    assert json.loads(result.stdout.strip().splitlines()[-1]) == pytest.approx(report.metrics, rel=1e-5)


def test_draws_follow_from_seed_epoch_and_pair_alone():
    shape = torch.Size((4, 8, 8))
    one, again = draw(1, 2, "a", shape), draw(1, 2, "a", shape)
    assert torch.equal(one.noise, again.noise)
    assert (one.timestep, one.coin) == (again.timestep, again.coin)
    others = [draw(2, 2, "a", shape), draw(1, 3, "a", shape), draw(1, 2, "b", shape)]
    assert all(not torch.equal(one.noise, other.noise) for other in others)
    coins = torch.tensor([draw(0, 0, str(i), torch.Size((1,))).coin for i in range(2000)])
    assert abs((coins < 0.5).double().mean().item() - 0.5) < 0.05


def test_every_epoch_has_every_pair_once_and_held_out_ones_never(config):
    samples = open_dataset(config(), progress=False).samples
    kept, held = held_out(samples, 0, 4)
    assert len(held) == 4
    assert not {sample.id for sample in kept} & {sample.id for sample in held}
    steps = [item for step in range(8) for item in step_pairs(kept, 0, step, 3)]
    for epoch in range(3):
        seen = [sample.id for e, sample in steps if e == epoch]
        assert sorted(seen) == sorted(sample.id for sample in kept)
    orders = [[sample.id for e, sample in steps if e == epoch] for epoch in (0, 1)]
    assert orders[0] != orders[1]
    assert held_out(tuple(reversed(samples)), 0, 4) == (kept, held)


def test_learning_rates(config):
    constant = config(lr_warmup_steps=4, max_train_steps=10, learning_rate=1.0)
    assert [learning_rate(constant, step, 8) for step in (0, 1, 3, 4, 9)] == [0.25, 0.5, 1.0, 1.0, 1.0]
    linear = config(lr_warmup_steps=2, max_train_steps=10, learning_rate=1.0, lr_scheduler="linear", scale_lr=True)
    assert learning_rate(linear, 6, 8) == pytest.approx(8 * 0.5)
    cosine = config(lr_warmup_steps=2, max_train_steps=10, learning_rate=1.0, lr_scheduler="cosine")
    assert learning_rate(cosine, 6, 8) == pytest.approx(0.5)


def test_stochastic_rounding_is_right_in_the_mean():
    value = 1.0 + 2**-9  # a quarter of the way between two neighbours in bf16, which are 2⁻⁷ apart
    rounded = stochastic_round(torch.full((40000,), value), torch.Generator().manual_seed(0))
    assert set(rounded.float().unique().tolist()) == {1.0, 1.0 + 2**-7}
    assert rounded.double().mean().item() == pytest.approx(value, abs=1e-4)
    exact = torch.tensor([1.0, -2.5, 0.0, float("inf")])
    assert torch.equal(stochastic_round(exact).float(), exact)


def test_small_updates_arrive_in_bf16(config):
    """At the authors' rate a plain bf16 update changes nothing; rounded at random it arrives in the mean."""
    parameter = torch.nn.Parameter(torch.ones(20000, dtype=torch.bfloat16))
    optimizer = make_optimizer(config(training_method="full", weight_dtype="bf16", learning_rate=1e-4), [parameter])
    for _ in range(10):
        parameter.grad = torch.ones_like(parameter)
        optimizer.step()
    assert parameter.double().mean().item() == pytest.approx(1 - 10 * 1e-4, abs=1e-4)
