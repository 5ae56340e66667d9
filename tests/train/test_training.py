"""The loop's parts on tiny real pipelines: gradients, processes, rates, rounding."""

import json
import os
import subprocess
import sys
from copy import deepcopy
from pathlib import Path

import pytest
import tiny_runs
import torch
from loaded_process import start_joined
from safetensors.torch import load_file
from tiny_runs import first_step, trainer_of

from chats.draws import draw, step_pairs
from chats.objective import OBJECTIVES
from chats_train.runs.checkpoint import RESUME, Checkpoint, State, save_checkpoint
from chats_train.runs.opening import open_family
from chats_train.runs.whole_members import make_members
from chats_train.support.errors import UserError
from chats_train.training.gradients import Gradients, make_batch
from chats_train.training.optimizer import learning_rate, make_optimizer, stochastic_round
from chats_train.training.optimizer_state import flatten_optimizer, unflatten_optimizer
from chats_train.training.trainer import NotFinite, micro_batches


def batch_of(trainer, seed=0):
    """The first micro-batch of the first step."""
    picked = micro_batches(step_pairs(trainer.samples, seed, 0, 4), 2)[0]
    pairs = [trainer.encodings.pair(sample) for _, sample in picked]
    draws = [
        draw(seed, epoch, sample.id, pair.chosen.shape) for (epoch, sample), pair in zip(picked, pairs, strict=True)
    ]
    return make_batch(trainer.family, pairs, draws, trainer.null, 0.5, torch.device("cpu"))


def moved(trainer):
    """The members a little away from the base, each its own way, so that Δ and the gate are not at their first
    values."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in trainer.parameters.values():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.01)
    return trainer


def joint_gradient(trainer, batch) -> dict[str, torch.Tensor]:
    """Autograd on the loss itself, with every graph alive at once and without gradient checkpointing."""
    members, family = trainer.members, trainer.family

    def error(denoiser, side):
        prediction = family.predict(denoiser, side.noisy, side.timesteps, side.prompt, side.sizes)
        return (side.target - prediction).square().mean(dim=(1, 2, 3))

    for module in members.modules:
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
    settings = dict(
        training_method=method, memory=memory, gradient_checkpointing=checkpointing, beta=20.0, network_rank=4
    )
    trainer = moved(trainer_of(config(**settings)))
    batch = batch_of(trainer)
    trainer.gradients.backward(batch, 1.0)
    actual = {name: parameter.grad for name, parameter in trainer.parameters.items()}
    expected = joint_gradient(trainer, batch)
    assert {name for name, gradient in expected.items() if gradient is not None} == {
        n for n, g in actual.items() if g is not None
    }
    vectors = [
        torch.cat([g.flatten() for g in gradients.values() if g is not None]) for gradients in (expected, actual)
    ]
    # Rows that share a pass are summed in another order.
    bound = 1e-5 if (method, memory) == ("lora", "normal") else 1e-6
    assert torch.linalg.vector_norm(vectors[0] - vectors[1]) / torch.linalg.vector_norm(vectors[0]) < bound
    for member in trainer.members.names:
        assert any(g is not None and g.any() for name, g in actual.items() if name.startswith(f"{member}."))


# At the second, members cannot share a pass, which under gradient checkpointing must not be seen.
TODAYS = [
    ("z_image", None),
    ("z_image", ["cap_embedder.1", "to_v"]),
    ("qwen_image", None),
    ("chroma", None),
    ("flux2_klein", None),
    ("krea2", None),
]


@pytest.mark.parametrize(("family", "targets"), TODAYS)
def test_the_gradient_is_the_joint_one_of_todays_models(family, targets, config):
    settings = dict(memory="low", gradient_checkpointing=True, beta=20.0, network_rank=4)
    settings |= {"memory": "normal", "network_target_modules": targets} if targets else {}
    trainer = moved(trainer_of(config(family, training_method="lora", **settings)))
    batches = (batch_of(trainer, seed) for seed in range(9))
    batch = next(filter(_has_two_lengths, batches)) if trainer.family.facts.longest_prompt else next(batches)
    trainer.gradients.backward(batch, 1.0)
    expected = joint_gradient(trainer, batch)
    actual = {name: parameter.grad for name, parameter in trainer.parameters.items()}
    # The last block of Qwen-Image asks nothing of its text any more.
    learned = [name for name, gradient in expected.items() if gradient is not None]
    assert learned == [name for name, gradient in actual.items() if gradient is not None]
    vectors = [torch.cat([g[name].flatten() for name in learned]) for g in (expected, actual)]
    assert torch.linalg.vector_norm(vectors[0] - vectors[1]) / torch.linalg.vector_norm(vectors[0]) < 1e-6


def _has_two_lengths(batch):
    """Whether one of two captions gave way to the null prompt, which is shorter."""
    return len(set(batch.rejected.prompt["mask"].sum(dim=1).tolist())) == 2


# The reference on both sides, then each member on its own; in one pass where they share a model.
ALONE = [(4, False), (2, True), (2, True)]
SHARED = [(4, False), (4, True)]
LOW = [(2, False), (2, False), (2, False), (2, True), (2, True)]


@pytest.mark.parametrize(
    ("settings", "passes"),
    [
        ({"training_method": "full", "gradient_checkpointing": True}, ALONE),
        ({"training_method": "full", "memory": "low"}, LOW),
        ({"training_method": "full", "objective": "diffusion_dpo"}, SHARED),
        ({"training_method": "lora"}, SHARED),
        ({"training_method": "lora", "gradient_checkpointing": True}, SHARED),
        ({"training_method": "lora", "memory": "low"}, LOW),
    ],
)
def test_a_batch_takes_as_few_passes_as_memory_allows(settings, passes, config, monkeypatch):
    """Rows of each pass over a batch of two pairs, and whether its graph is kept."""
    trainer = trainer_of(config(**settings))
    batch, called, predict = batch_of(trainer), [], trainer.family.predict

    def counted(denoiser, noisy, *rest):
        called.append((len(noisy), torch.is_grad_enabled()))
        return predict(denoiser, noisy, *rest)

    monkeypatch.setattr(trainer.family, "predict", counted)
    trainer.gradients.backward(batch, 1.0)
    assert called == passes


@pytest.mark.parametrize("family", ["sdxl", "sd3", "flux", "z_image", "qwen_image", "chroma", "flux2_klein", "krea2"])
def test_a_shared_pass_is_of_each_adapter_on_its_rows(family, config):
    """In every family (of SD1.5 the gradient is tested): as when each is called alone."""
    run = config(family, training_method="lora", output=family)
    opened = open_family(run, "cpu")
    members = make_members(run, opened, 2, True, torch.device("cpu"))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in members.named_parameters().values():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.05)
        names = ("preferred", "reference", "dispreferred")
        noisy = torch.randn(6, opened.latent_channels, 8, 8, generator=generator).to(opened.dtype)
        shapes = opened.prompt_shapes().items()
        prompt = {name: torch.randn(6, *shape, generator=generator).to(opened.dtype) for name, shape in shapes}
        if "mask" in prompt:
            length = prompt["mask"].shape[1]
            prompt["mask"] = torch.arange(length) < torch.tensor([[3], [40], [length], [1], [33], [8]])
        timesteps = opened.sample_timesteps(torch.linspace(0.1, 0.9, 6), (8, 8))
        shared = opened.predict(members.joint(names), noisy, timesteps, prompt).chunk(3)
        for index, name in enumerate(names):
            rows = slice(2 * index, 2 * index + 2)
            own = {key: value[rows] for key, value in prompt.items()}
            alone = opened.predict(members.denoiser(name), noisy[rows], timesteps[rows], own)
            torch.testing.assert_close(shared[index], alone, rtol=1e-4, atol=1e-5)
        away = [opened.predict(members.denoiser(name), noisy[:2], timesteps[:2], own) for name in names]
    assert min((one - other).abs().max() for one, other in zip(away, [*away[1:], away[0]], strict=True)) > 1e-3


@pytest.mark.parametrize("method", ["full", "lora"])
def test_each_call_is_of_its_own_model(method, config):
    """Whatever was asked for or called in between."""
    trainer = moved(trainer_of(config(training_method=method)))
    members, side = trainer.members, batch_of(trainer).chosen
    models = {"base": members.reference(), **{name: members.denoiser(name) for name in members.names}}

    def predicted(name):
        with torch.no_grad():
            return trainer.family.predict(models[name], side.noisy, side.timesteps, side.prompt, side.sizes)

    first = {name: predicted(name) for name in models}
    for name in ("dispreferred", "base", "preferred", "base", "dispreferred", "preferred"):
        assert torch.equal(predicted(name), first[name])
    with torch.no_grad():
        untrained = trainer.family.predict(
            trainer.family.load_denoiser(), side.noisy, side.timesteps, side.prompt, side.sizes
        )
    assert torch.equal(first["base"], untrained)
    assert not torch.equal(first["preferred"], first["dispreferred"])
    assert not torch.equal(first["preferred"], first["base"])


def test_the_reference_is_the_base_for_both_methods(config):
    """At the first step both members equal the reference: Δ = 0, z = 0, loss = log 2. Whole members see one side each,
    the reference both at once, which is summed in another order."""
    for method, rounding in (("full", 1e-6), ("lora", 0.0)):
        trainer = trainer_of(config(training_method=method, output=method))
        losses, metrics = trainer.gradients.measure(batch_of(trainer))
        assert metrics["delta_chosen"].abs().max() <= rounding
        bound = trainer.config.beta * 2 * rounding + 1e-6
        torch.testing.assert_close(losses, torch.full_like(losses, 2.0).log(), rtol=0, atol=bound)
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


LAUNCH = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--master-port=0", "--standalone"]
# What was registered first is done last, before the interpreter ends: by then torch's threads must be gone, since one
# that wants the interpreter when it ends aborts the process, seldom and under load only.
AGREEING = """
import atexit, json, os, pathlib, sys
sys.path.insert(0, {root!r})

def report():
    pathlib.Path(sys.argv[1], str(processes.index)).write_text(json.dumps([*answers, during, threads()]))

def threads():
    # Arrow's allocator has one of its own, which wants nothing of Python.
    names = [task.joinpath("comm").read_text().strip() for task in pathlib.Path("/proc/self/task").iterdir()]
    return sum(name != "jemalloc_bg_thd" for name in names)

atexit.register(report)
alone = threads()
from chats_train.runs.opening import open_family
from chats_train.runs.processes import Processes
processes = Processes()
assert processes.count == 2
answers = [processes.agree(3), processes.agree(processes.index), processes.agree(processes.one_number())]
during = threads() > alone
"""


def test_processes_know_whether_they_agree_and_part_before_they_end(tmp_path):
    root = str(Path(__file__).resolve().parents[2])
    (tmp_path / "worker.py").write_text(AGREEING.format(root=root))
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    result = subprocess.run(
        [*LAUNCH, tmp_path / "worker.py", tmp_path], capture_output=True, text=True, env=environment, check=False
    )
    assert result.returncode == 0, result.stderr[-3000:]
    # While they were joined there were such threads; at the end the main one alone.
    assert [json.loads((tmp_path / index).read_text()) for index in "01"] == [[True, False, True, True, 1]] * 2


OWN_LENGTHS = ("z_image", "qwen_image", "chroma", "flux2_klein", "krea2")


@pytest.mark.parametrize(
    ("family", "method"), [("sd15", "full"), ("sd15", "lora"), *((family, "lora") for family in OWN_LENGTHS)]
)
def test_two_processes_have_the_gradients_of_one(family, method, config, tmp_path):
    """Of Qwen-Image's last block a layer has none."""
    alone = trainer_of(config(family, training_method=method, gradient_accumulation_steps=4, max_grad_norm=0.0))
    report = alone.train_step()
    expected = {name: parameter.grad for name, parameter in alone.parameters.items() if parameter.grad is not None}

    run = config(family, training_method=method, gradient_accumulation_steps=2, max_grad_norm=0.0)
    logs = [tmp_path / f"log-{rank}" for rank in range(2)]
    processes = start_joined(logs, first_step, run, tmp_path)
    for process, log in zip(processes, logs, strict=True):
        process.join(timeout=120)
        assert process.exitcode == 0, log.read_text()[-3000:]
    actual = load_file(tmp_path / "gradients.safetensors")
    assert set(actual) == set(expected)
    vectors = [torch.cat([gradients[name].flatten() for name in sorted(expected)]) for gradients in (expected, actual)]
    assert torch.linalg.vector_norm(vectors[0] - vectors[1]) / torch.linalg.vector_norm(vectors[0]) < 1e-6
    assert json.loads((tmp_path / "metrics.json").read_text()) == pytest.approx(report.metrics, rel=1e-5)


def test_a_process_that_was_to_have_peers_is_refused(pairs, bases, tmp_path):
    """accelerate's own launcher, which starts one process here, however many it was asked for."""
    path = tmp_path / "run.yaml"
    path.write_text(json.dumps(tiny_runs.run_settings("sd15", bases("sd15"), pairs, tmp_path)))
    launch = [
        sys.executable,
        "-m",
        "accelerate.commands.launch",
        "--cpu",
        "--num_processes=2",
        "-m",
        "chats_train",
        "train",
        path,
    ]
    result = subprocess.run(
        launch, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}, check=False
    )
    assert result.returncode != 0
    assert "error: `accelerate launch` was asked for several processes and started one alone" in result.stderr
    assert not (tmp_path / "run").exists()


def resumed(trainer, config, tmp_path):
    """A new trainer that goes on from this one's checkpoint."""
    other = trainer_of(config)
    other.load_state(Checkpoint(save_checkpoint(tmp_path / "checkpoints", trainer.state(), None), RESUME))
    return other


def assert_equal_members(*trainers):
    one, other = (trainer.members.state() for trainer in trainers)
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_fp16_finds_its_scale_and_resumes(config, tmp_path):
    run = config(training_method="lora", mixed_precision="fp16", gradient_accumulation_steps=1, beta=10.0)
    trainer = trainer_of(run)
    before = {name: value.clone() for name, value in trainer.members.state().items()}
    reports = [trainer.train_step() for _ in range(3)]
    assert all(torch.isfinite(torch.tensor(report.metrics["loss"])) for report in reports)
    assert any(not torch.equal(before[name], value) for name, value in trainer.members.state().items())
    other = resumed(trainer, run, tmp_path)
    assert other.scaler.state_dict() == trainer.scaler.state_dict()
    trainer.train_step()
    other.train_step()
    assert_equal_members(trainer, other)


def test_fp16_gives_up_where_no_scale_helps(config):
    trainer = trainer_of(config(training_method="lora", mixed_precision="fp16", gradient_accumulation_steps=1))
    trainer.scaler.load_state_dict({**trainer.scaler.state_dict(), "scale": 1.0})
    next(iter(trainer.parameters.values())).data.fill_(float("nan"))
    trainer.train_step()  # the scaler's try
    with pytest.raises(NotFinite, match="step 2: the loss is nan"):
        trainer.train_step()


def test_nested_and_shared_optimizer_state_is_saved(tmp_path):
    """As bitsandbytes has it: a dict in a parameter's state, and one table for all parameters."""
    table = torch.arange(4.0)
    states = {
        0: {"step": 3, "quantised": {"state1": torch.ones(2), "qmap1": table}},
        1: {"quantised": {"qmap1": table}},
    }
    tensors, values = flatten_optimizer({"state": states, "param_groups": []})
    saved = save_checkpoint(tmp_path, State(1, {"optimizer": tensors}, {"optimizer": values}), None)
    loaded = Checkpoint(saved, RESUME)
    state = unflatten_optimizer(loaded.tensors("optimizer"), loaded.values["optimizer"], [])["state"]
    assert state.keys() == states.keys()
    assert state[0]["step"] == 3
    assert torch.equal(state[0]["quantised"]["state1"], torch.ones(2))
    assert all(torch.equal(state[index]["quantised"]["qmap1"], table) for index in states)


def test_eight_bit_adamw_resumes(config, tmp_path):
    pytest.importorskip("bitsandbytes")
    run = config(training_method="full", optimizer="adamw8bit", gradient_accumulation_steps=1)
    trainer = trainer_of(run)
    trainer.train_step()
    assert any(tensor.dtype == torch.uint8 for tensor in trainer.state().tensors["optimizer"].values())
    other = resumed(trainer, run, tmp_path)
    trainer.train_step()
    other.train_step()
    assert_equal_members(trainer, other)


def test_learning_rates(config):
    constant = config(lr_warmup_steps=4, max_train_steps=10, learning_rate=1.0)
    assert [learning_rate(constant, step, 8) for step in (0, 1, 3, 4, 9)] == [0.25, 0.5, 1.0, 1.0, 1.0]
    linear = config(lr_warmup_steps=2, max_train_steps=10, learning_rate=1.0, lr_scheduler="linear", scale_lr=True)
    assert learning_rate(linear, 6, 8) == pytest.approx(8 * 0.5)
    cosine = config(lr_warmup_steps=2, max_train_steps=10, learning_rate=1.0, lr_scheduler="cosine")
    assert learning_rate(cosine, 6, 8) == pytest.approx(0.5)


def stepped(settings, gradients):
    """A parameter of a few numbers after a step for each gradient."""
    parameter = torch.nn.Parameter(torch.tensor([1.0, -2.0, 3.0, 0.5]))
    optimizer = make_optimizer(settings, [parameter])
    for gradient in gradients:
        parameter.grad = gradient.clone()
        optimizer.step()
    return parameter.detach()


def test_adamw_takes_its_settings(config):
    """By hand: m and v are averages under β₁ and β₂, corrected for their start; p ← (1 − lr·λ) p − lr·m̂ / (√v̂ + ε)."""
    rate, beta1, beta2, epsilon, decay = 0.01, 0.5, 0.25, 0.1, 0.2
    settings = config(learning_rate=rate, adam_beta1=beta1, adam_beta2=beta2, adam_epsilon=epsilon, weight_decay=decay)
    gradients = [torch.tensor([0.1, -0.2, 0.3, 4.0]), torch.tensor([-0.5, 0.1, 0.0, 1.0])]
    p, m, v = torch.tensor([1.0, -2.0, 3.0, 0.5]), torch.zeros(4), torch.zeros(4)
    for step, gradient in enumerate(gradients, start=1):
        m = beta1 * m + (1 - beta1) * gradient
        v = beta2 * v + (1 - beta2) * gradient**2
        corrected = m / (1 - beta1**step), v / (1 - beta2**step)
        p = (1 - rate * decay) * p - rate * corrected[0] / (corrected[1].sqrt() + epsilon)
    torch.testing.assert_close(stepped(settings, gradients), p)


def test_a_state_of_the_plain_adamw_goes_on_in_the_fused_one(config):
    """What version 0.1.0 kept is of torch's loop over parameters; the second step from it is as that loop's."""
    settings = config(learning_rate=0.01, weight_decay=0.1)
    generator = torch.Generator().manual_seed(0)
    gradients = [torch.randn(1000, generator=generator) for _ in range(2)]
    plain = torch.nn.Parameter(torch.ones(1000))
    before = torch.optim.AdamW([plain], lr=0.01, eps=settings.adam_epsilon, weight_decay=0.1, foreach=False)
    plain.grad = gradients[0].clone()
    before.step()

    parameter = torch.nn.Parameter(plain.detach().clone())
    fused = make_optimizer(settings, [parameter])
    assert fused.param_groups[0]["fused"]
    kept = flatten_optimizer(deepcopy(before.state_dict()))
    fused.load_state_dict(unflatten_optimizer(*kept, fused.state_dict()["param_groups"]))
    for optimizer, each in ((before, plain), (fused, parameter)):
        each.grad = gradients[1].clone()
        optimizer.step()
    torch.testing.assert_close(parameter, plain, rtol=1e-6, atol=0)


@pytest.mark.parametrize("optimizer", ["adamw", "adamw8bit", "adafactor"])
def test_every_optimizer_decays_the_weights(optimizer, config):
    """Decoupled: by lr·λ at each step, also where the gradient is 0."""
    if optimizer == "adamw8bit":
        pytest.importorskip("bitsandbytes")
    settings = config(optimizer=optimizer, learning_rate=0.01, weight_decay=0.2)
    after = stepped(settings, [torch.zeros(4)] * 3)
    torch.testing.assert_close(after, torch.tensor([1.0, -2.0, 3.0, 0.5]) * (1 - 0.01 * 0.2) ** 3)


def test_adapters_are_on_the_layers_that_are_named(config):
    trainer = trainer_of(config(training_method="lora", network_target_modules=["attn2.to_v", "ff.net.2"]))
    layers = {name.partition(".lora_")[0] for name in trainer.parameters}
    assert {next(end for end in ("attn2.to_v", "ff.net.2") if layer.endswith(end)) for layer in layers} == {
        "attn2.to_v",
        "ff.net.2",
    }
    with pytest.raises(UserError, match=r"`network_target_modules` is \['to_w'\], which names no layer of the base"):
        trainer_of(config(training_method="lora", network_target_modules=["to_w"]))


def test_stochastic_rounding_is_right_in_the_mean():
    value = 1.0 + 2**-9  # a quarter of the way between two neighbours in bf16, which are 2⁻⁷ apart
    rounded = stochastic_round(torch.full((40000,), value), "a key")
    assert set(rounded.float().unique().tolist()) == {1.0, 1.0 + 2**-7}
    assert rounded.double().mean().item() == pytest.approx(value, abs=1e-4)
    exact = torch.tensor([1.0, -2.5, 0.0, float("inf")])
    assert torch.equal(stochastic_round(exact, "a key").float(), exact)


def test_small_updates_arrive_in_bf16(config):
    """At the authors' rate a plain bf16 update changes nothing; rounded at random it arrives in the mean."""
    parameter = torch.nn.Parameter(torch.ones(20000, dtype=torch.bfloat16))
    optimizer = make_optimizer(config(training_method="full", weight_dtype="bf16", learning_rate=1e-4), [parameter])
    for _ in range(10):
        parameter.grad = torch.ones_like(parameter)
        optimizer.step()
    assert parameter.double().mean().item() == pytest.approx(1 - 10 * 1e-4, abs=1e-4)
