"""The bundled recipes: each loads, says where it departs from the paper, and takes the memory that it states."""

import re
from pathlib import Path
from types import SimpleNamespace

import pytest

from chats_train import cli
from chats_train.check.estimate import memory_bytes
from chats_train.check.readiness import model_size
from chats_train.families import adapter_of
from chats_train.families.single_file import CONFIGS
from chats_train.families.sources import empty_shapes, parameter_count, read_json
from chats_train.settings.config_file import load_config
from chats_train.settings.facts import FAMILIES
from chats_train.settings.recipes import FOLDER, recipe_names
from chats_train.support.amounts import bytes_text

RECIPES = sorted(FOLDER.glob("*.yaml"))
CARDS = ("8gb", "12gb", "16gb", "24gb")
# Of a card, for activations, torch and the screen: a step of SDXL's two LoRAs at 1024 × 1024 took 1.4 GiB beside the
# base (benchmarks/node_training.md).
LEFT_FREE = 2.5e9


@pytest.fixture(scope="module")
def published():
    """A family's adapter over the bundled configurations of its published base, without weights."""
    made = {}

    def family(name):
        if name not in made:
            facts = FAMILIES[name]
            adapter = object.__new__(adapter_of(facts))
            classes = adapter.part_classes()
            shapes = {
                facts.denoiser_part: empty_shapes(classes[facts.denoiser_part], config(name, facts.denoiser_part))
            }
            adapter.source = SimpleNamespace(config=lambda part: config(name, part), shapes=shapes.__getitem__)
            counts = {part: parameter_count(each) for part, each in shapes.items()}
            adapter.parameter_counts = lambda: counts
            made[name] = adapter
        return made[name]

    return family


def config(family: str, part: str) -> dict:
    return read_json(CONFIGS / family / part / "config.json")


def test_every_recipe_is_there():
    for family in ("sd15", "sdxl"):
        assert set(recipe_names(family)) == {"paper", "paper-pickapic", *CARDS}
    assert len(RECIPES) == 12


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_takes_what_it_states(path, published):
    run, text = load_config(path), path.read_text(encoding="utf-8")
    assert path.stem.startswith(f"{run.family}-")
    found = memory_bytes(run, model_size(run, published(run.family)), run.training_method, run.weight_dtype)
    stated = re.search(r"^# Memory: (\S+ GB) of weights, gradients and (\w+), activations on top\.$", text, re.M)
    assert stated.groups() == (bytes_text(found), run.optimizer)
    card = path.stem.partition("-")[2]
    if card in CARDS:
        assert found + LEFT_FREE <= int(card.removesuffix("gb")) * 2**30
        assert run.gradient_checkpointing
        assert "Departures from the paper" in text


@pytest.mark.parametrize(("family", "rate", "steps", "optimizer"), [
    ("sd15", 1e-9, 2000, "adamw"), ("sdxl", 3e-9, 6000, "adafactor"),
])  # fmt: skip
def test_the_papers_recipes_are_the_authors_settings(family, rate, steps, optimizer):
    """Their scripts: 8 GPUs × 1 × 16 pairs a step; T, s and α as the paper has them."""
    for name in ("paper", "paper-pickapic"):
        run = load_config(FOLDER / f"{family}-{name}.yaml")
        assert (run.learning_rate, run.scale_lr, run.max_train_steps, run.optimizer) == (rate, True, steps, optimizer)
        assert run.train_batch_size * run.gradient_accumulation_steps == 8 * 1 * 16
        assert (run.beta, run.null_prompt_prob, run.resolution, run.lr_warmup_steps) == (1000, 0.5, 1024, 100)
        assert (run.guidance_scale, run.alpha, run.weight_decay) == (5, 0.5, 0.01)
        assert (run.training_method, run.weight_dtype, run.mixed_precision) == ("full", "fp32", "bf16")
    assert "departure:" in (FOLDER / f"{family}-paper.yaml").read_text(encoding="utf-8")


def test_init_writes_a_recipe(tmp_path, capsys):
    def init(family, recipe, output="run.yaml"):
        return cli.main(["init", family, "--recipe", recipe, "--output", str(tmp_path / output)])

    assert init("sdxl", "12gb") == 0
    assert load_config(tmp_path / "run.yaml") == load_config(FOLDER / "sdxl-12gb.yaml")
    assert init("sdxl", "papr", "other.yaml") == 2
    assert "8gb, paper, paper-pickapic; did you mean paper?" in capsys.readouterr().err
    assert init("flux", "paper", "other.yaml") == 2
    assert "recipes are there for sd15, sdxl" in capsys.readouterr().err
    assert not Path(tmp_path / "other.yaml").exists()
