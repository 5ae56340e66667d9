"""A finished pair as one model: what it learns from, its gradient and start, going on, what its file says, and what is
refused."""

import json
import re
import shutil
from pathlib import Path

import pytest
import tiny_runs
import torch
from PIL import Image
from safetensors.torch import load_file

from chats.distilled import DistilledMetadata
from chats.draws import step_pairs
from chats.pair import read_header, read_metadata
from chats_train.cli import main
from chats_train.data import open_dataset
from chats_train.distillation import distill as distillation
from chats_train.distillation.distill import distill
from chats_train.distillation.finished_run import open_finished_run
from chats_train.distillation.settings import DistillSettings, student_config
from chats_train.distillation.student import STUDENT
from chats_train.encodings.cache import CachedEncodings
from chats_train.runs.opening import open_family
from chats_train.runs.processes import Processes
from chats_train.runs.trained import open_trained, trained_members
from chats_train.sampling.sampler import SamplingSettings, sample_cfg, sample_pair
from chats_train.settings.config_file import parse_config, save_resolved
from chats_train.support.errors import UserError
from chats_train.training.train import train
from chats_train.training.trainer import Trainer

RUN = {"max_train_steps": 2, "checkpointing_steps": 2, "lr_warmup_steps": 0, "alpha": 0.4, "guidance_scale": 2.0}


@pytest.fixture(scope="module")
def finished(bases, pairs, tmp_path_factory):
    """The YAML of a finished run by its method, made once; nothing may write into its folder but below `distilled`."""
    made: dict[str, Path] = {}

    def run(method: str) -> Path:
        if method not in made:
            folder = tmp_path_factory.mktemp(method)
            settings = {**RUN, "training_method": method, "learning_rate": 3e-2 if method == "lora" else 1e-2}
            raw = tiny_runs.run_settings("sd15", bases("sd15"), pairs, folder, network_rank=4, **settings)
            train(parse_config(raw))
            made[method] = folder / "run.yaml"
            made[method].write_text(json.dumps(raw))
        return made[method]

    return run


def trainer_of(path: Path, folder: Path, **settings) -> Trainer:
    """A distillation at its first step."""
    run = open_finished_run(path, [], "latest")
    filled = DistillSettings(batch_size=4, **settings).filled_in(run)
    family, dataset = open_family(run.config, "cpu"), open_dataset(run.config, progress=False)
    encodings = CachedEncodings(run.config.cache_dir, family.fingerprint)
    config = student_config(filled, run.config, family, folder, 1)
    return distillation.make_trainer(run, filled, config, family, dataset, encodings, Processes())


def first_batch(trainer: Trainer):
    return trainer._batch(step_pairs(trainer.samples, trainer.config.seed, 0, 2))


def taught_by_hand(path: Path, side, null, form, negative, s, alpha, guided):
    """ε̃ of Eq. 16 and 17 from the members as `sample` opens them; ε⁺ in rows that are not guided."""
    config = open_finished_run(path, [], "latest").config
    family = open_family(config, "cpu")
    members = trained_members(config, family, open_trained(config, "latest"))

    def predicted(model, tokens):
        with torch.no_grad():
            return family.predict(model, side.noisy, side.timesteps, {"tokens": tokens}, side.sizes)

    other = members.reference() if negative == "base" else members.denoiser("dispreferred")
    prompt, empty = side.prompt["tokens"], null["tokens"].expand_as(side.prompt["tokens"])
    preferred = predicted(members.denoiser("preferred"), prompt)
    if form == "proxy":
        away = predicted(other, -alpha * prompt + (1 + alpha) * empty)
    else:
        away = -alpha * predicted(other, prompt) + (1 + alpha) * predicted(other, empty)
    taught = (1 + s) * preferred - s * away
    return torch.stack([taught[row] if guided[row] else preferred[row] for row in range(len(guided))]), preferred


TEACHERS = {
    "proxy": {},
    "exact": {"form": "exact", "alpha": 0.6, "guidance_scale": 3.0},
    "base": {"negative": "base"},
    "alpha 0": {"alpha": 0.0, "form": "exact"},
    "interval": {"start_percent": 0.35, "end_percent": 0.7},
}


@pytest.mark.parametrize(
    ("method", "student", "teacher", "checkpointing"),
    [
        ("lora", "lora", "proxy", True),
        ("lora", "lora", "exact", False),
        ("lora", "lora", "base", False),
        ("lora", "lora", "interval", False),
        ("full", "full", "alpha 0", False),
        ("full", "full", "base", False),
        ("full", "lora", "proxy", False),
    ],
)
def test_the_gradient_is_that_of_the_mean_squared_error_to_the_guided_prediction(
    method, student, teacher, checkpointing, finished, tmp_path
):
    trainer = trainer_of(finished(method), tmp_path, method=student, rank=6, **TEACHERS[teacher])
    if checkpointing:
        trainer.members.modules[0].enable_gradient_checkpointing()
    with torch.no_grad():  # away from the preferred model, so that no factor is zero
        generator = torch.Generator().manual_seed(3)
        for parameter in trainer.parameters.values():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.01)
    batch = first_batch(trainer)
    stated = {"form": "proxy", "negative": "dispreferred", "guidance_scale": 2.0, "alpha": 0.4, **TEACHERS[teacher]}
    stated["alpha"] = 0.0 if teacher == "base" else stated["alpha"]
    guided = [True] * 2
    if teacher == "interval":
        sigmas = trainer.family.schedule.sigmas
        bounds = [sigmas[int((1 - share) * 999)] for share in (0.35, 0.7)]
        guided = [bool(bounds[1] <= sigmas[t] <= bounds[0]) for t in batch.chosen.timesteps]
        assert sorted(guided) == [False, True], f"{batch.chosen.timesteps} are to lie on both sides"
    values = (stated["form"], stated["negative"], stated["guidance_scale"], stated["alpha"])
    by_hand, preferred = taught_by_hand(finished(method), batch.chosen, trainer.null, *values, guided)
    target = trainer.gradients.taught(batch).chosen.target
    # Guidance multiplies what the members' rounding is.
    assert torch.linalg.vector_norm(target - by_hand) / torch.linalg.vector_norm(by_hand) < 1e-5

    prediction = trainer.family.predict(
        trainer.members.denoiser(STUDENT), batch.chosen.noisy, batch.chosen.timesteps, batch.chosen.prompt
    )
    expected_losses = (prediction - target).square().mean(dim=(1, 2, 3))
    leaves = list(trainer.parameters.values())
    expected = torch.autograd.grad(expected_losses.sum() / 2, leaves, materialize_grads=True)
    losses, metrics = trainer.gradients.backward(batch, 0.5)
    actual = [parameter.grad if parameter.grad is not None else torch.zeros_like(parameter) for parameter in leaves]
    vectors = [torch.cat([gradient.flatten() for gradient in each]) for each in (expected, actual)]
    assert torch.linalg.vector_norm(vectors[0] - vectors[1]) / torch.linalg.vector_norm(vectors[0]) < 1e-6
    assert torch.allclose(losses, expected_losses.detach(), rtol=1e-5)
    assert torch.allclose(metrics["preferred_error"], (preferred - target).square().mean(dim=(1, 2, 3)), rtol=1e-4)
    for module in trainer.members.modules:  # what teaches does not learn
        assert all(p.grad is None for p in module.parameters() if not any(p is leaf for leaf in leaves))


@pytest.mark.parametrize(("method", "student", "rank"), [("lora", "lora", 4), ("lora", "lora", 6), ("full", "full", 4)])
def test_the_student_begins_as_the_preferred_model(method, student, rank, finished, tmp_path):
    trainer = trainer_of(finished(method), tmp_path, method=student, rank=rank)
    batch = first_batch(trainer)
    losses, metrics = trainer.gradients.measure(batch)
    # Its factors are the pair's own, and zeros beside them.
    tolerance = {"rtol": 0, "atol": 0} if rank == 4 else {"rtol": 1e-5, "atol": 0}
    torch.testing.assert_close(losses, metrics["preferred_error"], **tolerance)
    trainer.gradients.backward(batch, 1.0)
    if method == "lora":
        up = next(value for name, value in trainer.parameters.items() if "to_q.lora_B" in name)
        assert up.grad.any(dim=0).all(), "a rank that is new does not learn"


def test_a_student_of_lower_rank_begins_as_near_as_that_allows(finished, tmp_path, capsys):
    trainer = trainer_of(finished("lora"), tmp_path, rank=2, layers="pair")
    run = open_finished_run(finished("lora"), [], "latest")
    pair, own = run.checkpoint.weights(), trainer.members.parameters(STUDENT)
    kept = total = 0.0
    for name, down in own.items():
        if ".lora_A." in name:
            up = own[name.replace("lora_A", "lora_B")]
            key = f"preferred.{name.replace(STUDENT, 'preferred')}"
            product = (pair[key.replace("lora_A", "lora_B")] @ pair[key]).double()
            left, values, right = torch.linalg.svd(product, full_matrices=False)
            best = (left[:, :2] * values[:2]) @ right[:2]
            # The scale alpha / rank is the pair's, 16 / 4 for both.
            torch.testing.assert_close((up @ down).double(), best, rtol=1e-3, atol=1e-6)
            kept, total = kept + values[:2].square().sum(), total + values.square().sum()
    assert trainer.config.network_alpha / 2 == run.config.network_alpha / 4
    assert f"starts with {100 * kept / total:.1f} % of the preferred model's difference" in capsys.readouterr().out


def test_a_lora_of_whole_models_begins_with_the_best_factors_of_every_layer(finished, tmp_path):
    trainer = trainer_of(finished("full"), tmp_path, method="lora", rank=2)
    run = open_finished_run(finished("full"), [], "latest")
    weights, base = run.checkpoint.weights(), trainer.family.load_denoiser().state_dict()
    own = trainer.members.parameters(STUDENT)
    for module in ("down_blocks.0.resnets.0.conv1", "mid_block.attentions.0.transformer_blocks.0.ff.net.2"):
        difference = (weights[f"preferred.{module}.weight"] - base[f"{module}.weight"]).double().flatten(1)
        left, values, right = torch.linalg.svd(difference, full_matrices=False)
        down, up = (own[f"{module}.lora_{side}.{STUDENT}.weight"].flatten(1) for side in "AB")
        torch.testing.assert_close((up @ down).double(), (left[:, :2] * values[:2]) @ right[:2], rtol=1e-3, atol=1e-6)


@torch.no_grad()
def test_the_sampler_asks_what_it_needs(finished, tmp_path):
    """Of two models as often as they guide, and at s = 0 of one model once a step."""
    trainer = trainer_of(finished("lora"), tmp_path, start_percent=0.5, end_percent=0.9)
    family, null = trainer.family, trainer.null
    noise = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    prompt = family.encode_prompt(["a b"])
    calls = []

    def counted(name):
        def call(*args, **kwargs):
            calls.append(name)
            return trainer.members.denoiser(name)(*args, **kwargs)

        return call

    settings = SamplingSettings(8, "normal", 2.0, 0.4, "proxy", 0.5, 0.9)
    sample_pair(family, counted("preferred"), counted("dispreferred"), prompt, null, noise, settings)
    # Of the 8 levels, at shares 0, 1/7 … 1, those from 4/7 to 6/7 are within.
    assert (calls.count("preferred"), calls.count("dispreferred")) == (8, 3)
    assert calls[:6] == ["preferred"] * 4 + ["preferred", "dispreferred"]
    calls.clear()
    sample_cfg(family, counted(STUDENT), prompt, null, noise, SamplingSettings(8, "normal", 0.0))
    assert calls == [STUDENT] * 8


def distilled(finished, folder, *arguments) -> int:
    return main(["distill", str(finished), "--batch-size", "4", "--steps", "4", "--output", str(folder), *arguments])


def test_stopped_in_the_middle_it_ends_bitwise_as_one_that_was_not(finished, tmp_path, monkeypatch, capsys):
    from chats_train.distillation import settings

    monkeypatch.setattr(settings, "EVERY", 2)
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    path = finished("lora")
    assert distilled(path, whole) == 0
    step = Trainer.train_step

    def killed(trainer):
        if trainer.step == 3:
            raise KeyboardInterrupt
        return step(trainer)

    monkeypatch.setattr(Trainer, "train_step", killed)
    assert distilled(path, parts) == 130
    monkeypatch.setattr(Trainer, "train_step", step)
    assert not list(parts.glob("*.safetensors"))
    assert distilled(path, parts) == 0
    assert "going on from" in capsys.readouterr().out
    for name in ("members.safetensors", "optimizer.safetensors"):
        files = [folder / "checkpoints" / "step-00000004" / name for folder in (whole, parts)]
        assert files[0].read_bytes() == files[1].read_bytes(), name
    tensors = [load_file(folder / f"run_{folder.name}.safetensors") for folder in (whole, parts)]
    assert all(torch.equal(tensors[0][name], tensors[1][name]) for name in tensors[0])


def test_what_it_leaves_says_what_it_is(finished, tmp_path, capsys):
    path = finished("lora")
    run = path.parent / "run"
    # By the run's folder, wherever that is.
    asked = ["--form", "exact", "--start-percent", "0.2", "--layers", "pair"]
    assert distilled(run, tmp_path / "out", "--dtype", "fp32", *asked) == 0
    assert "sample it at cfg 1, no pair needed; on held-out pairs it has learned" in capsys.readouterr().out
    file = tmp_path / "out" / "run_out.safetensors"
    said = DistilledMetadata.from_header(read_header(file))
    pair = read_metadata(run / "run_preferred.safetensors")
    assert (said.cfg, said.pair_id, said.pair_name, said.pair_step) == (1, pair.pair_id, "run", 2)
    assert (said.form, said.negative, said.guidance_scale, said.alpha) == ("exact", "dispreferred", 2.0, 0.4)
    assert (said.start_percent, said.end_percent, said.step) == (0.2, 1.0, 4)
    assert (said.base_sha256, said.dataset_fingerprint) == (pair.base_sha256, pair.dataset_fingerprint)
    assert read_metadata(file) is None, "it is no member of a pair"
    keys = load_file(run / "run_preferred.safetensors").keys()
    assert load_file(file).keys() == keys
    assert {tensor.dtype for tensor in load_file(file).values()} == {torch.float32}
    assert main(["inspect", str(file)]) == 0
    shown = capsys.readouterr().out
    assert (
        "distilled from the pair run, form exact, cfg 3 (s = 2), alpha 0.4, guided from 0.2 to 1 of the noise "
        "schedule: cfg 1, no pair needed" in shown
    )
    # In another precision, without another step.
    before = (tmp_path / "out" / "metrics.jsonl").read_bytes()
    assert distilled(run, tmp_path / "out", *asked) == 0
    assert {tensor.dtype for name, tensor in load_file(file).items() if "alpha" not in name} == {torch.float16}
    assert (tmp_path / "out" / "metrics.jsonl").read_bytes() == before


def test_a_whole_pair_becomes_a_whole_model_and_learns(finished, tmp_path):
    arguments = ["--batch-size", "4", "--steps", "8", "--output", str(tmp_path / "out")]
    arguments += ["--set", "sample_prompts=[a b]", "--set", "sample_steps=2"]
    assert main(["distill", str(finished("full")), *arguments]) == 0
    rows = [json.loads(line) for line in (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()]
    assert rows[-1]["validation_loss"] < 0.95 * rows[-1]["validation_preferred_error"]
    with Image.open(tmp_path / "out" / "previews" / "step-00000008.png") as picture:
        assert picture.width > picture.height, "the pair and what was distilled, side by side"
    preferred = load_file(finished("full").parent / "run" / "run_preferred.safetensors")
    assert load_file(tmp_path / "out" / "run_out.safetensors").keys() == preferred.keys()


def test_the_form_is_what_the_runs_probe_says(finished, tmp_path):
    run = open_finished_run(finished("lora"), [], "latest")
    path = run.config.output_dir / "proxy_probe.json"
    before = path.read_text()
    try:
        for cosine, form in ((0.95, "proxy"), (0.1, "exact")):
            path.write_text(json.dumps({"step": 2, "alpha": 0.4, "cosine": cosine, "relative_error": 0.3}))
            assert DistillSettings().filled_in(run).form == form
        assert DistillSettings(negative="base").filled_in(run).form == "proxy"  # at α = 0 the two are equal
        assert DistillSettings(negative="base").filled_in(run).alpha == 0
    finally:
        path.write_text(before)


def test_a_step_is_shared_in_parts_that_the_runs_memory_holds(finished, tmp_path):
    run = open_finished_run(finished("lora"), [], "latest")  # 2 pairs at once
    family = open_family(run.config, "cpu")
    for batch_size, processes, parts in ((16, 1, (2, 8)), (3, 1, (1, 3)), (8, 2, (2, 2)), (1, 1, (1, 1))):
        settings = DistillSettings(batch_size=batch_size).filled_in(run)
        config = student_config(settings, run.config, family, tmp_path, processes)
        assert (config.train_batch_size, config.gradient_accumulation_steps) == parts
    with pytest.raises(UserError, match="`--batch-size` is 3, which 2 processes cannot share; give a multiple"):
        student_config(DistillSettings(batch_size=3).filled_in(run), run.config, family, tmp_path, 2)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--rank", "0"], "`--rank` is 0; give 1 or more"),
        (["--guidance-scale", "-1"], "`--guidance-scale` is -1; give 0 or more"),
        (["--learning-rate", "nan"], "`--learning-rate` is nan; give a number above 0"),
        (["--start-percent", "0.9", "--end-percent", "0.2"], "`--start-percent` is 0.9 and `--end-percent` 0.2; give"),
        (["--method", "full"], "`--method` is full, but the run trained LoRAs, which are distilled into one"),
        (["--set", "guidance_scale=3"], "`guidance_scale` is `3.0`, but the run .* trained with `2.0`; set it back"),
        (["--set", "max_train_steps=3"], "`max_train_steps` is `3`, but the run"),
        (["--checkpoint", "nowhere"], "nowhere cannot be used"),
    ],
)
def test_refused_in_a_sentence(arguments, words, finished, tmp_path, capsys):
    path = finished("lora")
    capsys.readouterr()
    assert distilled(path, tmp_path / "out", *arguments) == 2
    error = capsys.readouterr().err
    assert re.search(words, error), error
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_a_run_that_is_not_finished_is_refused(finished, tmp_path):
    run = finished("lora").parent / "run"
    shutil.copytree(run / "checkpoints", tmp_path / "run" / "checkpoints")
    longer = parse_config(json.loads(finished("lora").read_text()) | {"max_train_steps": 3})
    save_resolved(longer, tmp_path / "run" / "config.yaml")
    with pytest.raises(UserError, match=r"is at step 2 of 3; let `train` finish it, or name a checkpoint"):
        distill(tmp_path / "run", [], DistillSettings())
    shutil.rmtree(tmp_path / "run" / "checkpoints")
    with pytest.raises(UserError, match=r"has no whole checkpoint; train first"):
        distill(tmp_path / "run", [], DistillSettings())
    with pytest.raises(UserError, match=r"is no run: it has no config.yaml; give the folder of a run"):
        distill(tmp_path, [], DistillSettings())


def test_a_pair_of_one_model_has_the_base_as_its_negative(finished):
    run = open_finished_run(finished("lora"), [], "latest")
    object.__setattr__(run, "config", run.config.model_copy(update={"objective": "supervised_chosen"}))
    with pytest.raises(UserError, match="is supervised_chosen, which trains no dispreferred model; give `--negative b"):
        DistillSettings().filled_in(run)
    assert DistillSettings(negative="base").filled_in(run).negative == "base"


def test_a_folder_holds_one_distillation(finished, tmp_path, capsys, monkeypatch):
    path, folder = finished("lora"), tmp_path / "out"
    assert distilled(path, folder) == 0
    capsys.readouterr()
    assert distilled(path, folder, "--rank", "8") == 2
    assert (
        "holds a distillation with `rank` 16, and this one has 8; give the same, or choose another folder with `--o"
        in (capsys.readouterr().err)
    )
    assert distilled(path, path.parent / "run") == 2
    assert "run, which has checkpoints of another run; choose another folder" in capsys.readouterr().err
    (folder / "distillation.json").write_text("{")
    assert distilled(path, folder) == 2
    assert f"distillation.json is damaged; remove {folder}" in capsys.readouterr().err
    monkeypatch.setattr(distillation, "disk_of", lambda folder: (0, 1000))
    assert distilled(path, tmp_path / "full") == 2
    assert "full, which lacks" in capsys.readouterr().err
