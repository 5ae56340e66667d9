"""Draws that come again: the reference is asked once for each, and then leaves."""

import json
import weakref

import pytest
import torch
from tiny_runs import trainer_of

from chats.draws import draw
from chats_train.cli import main
from chats_train.runs.checkpoint import RESUME, Checkpoint, save_checkpoint
from chats_train.settings.config_file import parse_config
from chats_train.support.errors import UserError
from chats_train.training.reference_errors import ReferenceErrors, repeats_note

# Of twelve pairs two are held out, and a step has four: an epoch takes 2.5 steps.
SETTINGS = {"lr_warmup_steps": 0, "max_train_steps": 12}


class Sample:
    def __init__(self, name):
        self.id = name


def asked(trainer, monkeypatch):
    """How many rows the reference sees, a list that grows."""
    rows, ask = [], trainer.gradients.reference_errors

    def counted(batch):
        rows.append(2 * batch.size)
        return ask(batch)

    monkeypatch.setattr(trainer.gradients, "reference_errors", counted)
    return rows


def test_within_the_first_draws_a_run_is_as_with_fresh_ones(config, monkeypatch):
    """K epochs long, and to the last bit; after them the reference is not asked any more."""
    fresh, again = (
        trainer_of(config(training_method="lora", **SETTINGS, reference_draws=draws)) for draws in (None, 2)
    )
    rows = asked(again, monkeypatch)
    for _ in range(5):
        assert fresh.train_step().metrics == again.train_step().metrics
    # Of two sides, ten pairs and two draws.
    assert sum(rows) == 40
    assert fresh.train_step().metrics != again.train_step().metrics
    assert sum(rows) == 40


def test_draws_and_errors_come_again(config, monkeypatch, tmp_path):
    """After one epoch with K = 1: what a whole model's reference said is kept, of held-out pairs too; it is gone, also
    after a resume."""
    trainer = trainer_of(config(training_method="full", **SETTINGS, reference_draws=1))
    rows, samples = asked(trainer, monkeypatch), trainer.samples
    batch = trainer._batch([(0, samples[0])])
    torch.testing.assert_close(batch.chosen.noisy, trainer._batch([(1, samples[0])]).chosen.noisy, rtol=0, atol=0)
    shape = batch.chosen.noisy.shape[1:]
    expected = draw(trainer.config.seed, 0, samples[0].id, shape)
    assert torch.equal(
        trainer.family.sample_timesteps(torch.tensor([expected.timestep]), shape[1:]), batch.chosen.timesteps
    )
    assert rows == [2]
    for _ in range(3):
        trainer.train_step()
    # Twelve visits of ten pairs; those of a batch are asked together where one of them is new.
    assert 18 <= sum(rows[1:]) <= 24
    reference = weakref.ref(trainer.members.reference())
    measured = trainer.validate()
    assert reference() is None
    seen = list(rows)
    assert trainer.validate() == measured
    trainer.train_step()
    assert rows == seen
    resumed = trainer_of(trainer.config)
    reference = weakref.ref(resumed.members.reference())
    resumed.load_state(Checkpoint(save_checkpoint(tmp_path / "checkpoints", trainer.state(), None), RESUME))
    assert reference() is None
    assert resumed.train_step().metrics == trainer.train_step().metrics


def test_a_resumed_run_ends_as_one_that_was_not_stopped(config, tmp_path):
    """Stopped before all errors are known, and after; errors of other settings are computed anew, those of other
    batches are not."""
    run = config(training_method="lora", **SETTINGS, reference_draws=1)
    whole = trainer_of(run)
    kept = {}
    for step in range(1, 6):
        whole.train_step()
        if step == 4:
            whole.validate()
        if step in (2, 4):
            kept[step] = save_checkpoint(tmp_path / "checkpoints", whole.state(), None)
    for step, path in kept.items():
        other = trainer_of(run)
        other.load_state(Checkpoint(path, RESUME))
        assert other.references.complete == (step == 4)
        while other.step < whole.step:
            other.train_step()
        assert all(torch.equal(value, whole.members.state()[name]) for name, value in other.members.state().items())
        known = ~other.references.table.isnan()
        assert torch.equal(other.references.table[known], whole.references.table[known])
    for change, complete in (
        ({"null_prompt_prob": 0.25}, False),
        ({"train_batch_size": 4, "gradient_accumulation_steps": 1}, True),
    ):
        changed = trainer_of(run.model_copy(update=change))
        changed.load_state(Checkpoint(kept[4], RESUME))
        assert changed.references.complete == complete, change
        assert complete or changed.references.table.isnan().all(), change
    errors = kept[4] / "references.safetensors"
    errors.write_bytes(errors.read_bytes()[:-1] + b"\x01")
    with pytest.raises(UserError, match=r"references.safetensors"):
        Checkpoint(kept[4], RESUME).prove()


def test_processes_bring_together_what_each_has_computed():
    """Two tables of one run, as `sum` over two processes would add them."""

    class Peers:
        count, device = 2, torch.device("cpu")

        def __init__(self, other):
            self.other = other

        def sum(self, tensor):
            errors = self.other.table[self.other._places(picked)].double()
            known = ~errors.isnan()
            return tensor + torch.stack([errors.where(known, 0.0), known.double()])

    samples = [Sample(name) for name in "abc"]
    one, other = (ReferenceErrors(2, list("abc"), ["v"]) for _ in range(2))
    picked = [(0, samples[0]), (3, samples[1]), (1, samples[2]), (-1, Sample("v"))]

    def errors(*values):
        return lambda: {"chosen_reference": torch.tensor(values), "rejected_reference": torch.tensor(values) + 1}

    one.of(picked[:2], errors(0.1, 0.2))
    other.of([picked[0], picked[3]], errors(0.1, 0.4))
    one.share(picked, Peers(other))
    known = one.of([(2, samples[0]), (1, samples[1]), picked[3]], errors)
    assert known["chosen_reference"].tolist() == torch.tensor([0.1, 0.2, 0.4]).tolist()
    assert known["rejected_reference"].tolist() == (torch.tensor([0.1, 0.2, 0.4]) + 1).tolist()
    assert one.table[one._places(picked[2:3])].isnan().all()
    # What is known is not computed again.
    assert one.of(picked[:1], errors(9.0))["chosen_reference"].tolist() == torch.tensor([0.1]).tolist()


def test_what_is_not_known_yet_is_counted_along():
    """A pair twice in a batch counts once, an error that is not finite as unknown; and a look at the whole table, which
    would cost each step as much as there are pairs, is not needed."""
    samples = [Sample(name) for name in "ab"]
    references = ReferenceErrors(1, list("ab"), ["v"])

    def ask(picked, *values):
        errors = torch.tensor(values)
        references.of(picked, lambda: {"chosen_reference": errors, "rejected_reference": torch.ones(len(values))})
        assert references.complete == (not references.table.isnan().any())

    ask([(0, samples[0]), (1, samples[0])], 0.1, 0.1)
    ask([(-1, Sample("v")), (0, samples[1])], 0.2, float("nan"))
    ask([(3, samples[1]), (3, samples[0])], 0.3, 0.1)
    assert references.complete
    half = references.table.clone()
    half[1, 0] = float("nan")
    references.load(half)
    assert not references.complete
    ask([(0, samples[1])], 0.3)
    del references.table
    assert references.complete


def test_a_run_that_repeats_its_draws_often_is_told(config):
    """Ten pairs, four a step: 50 steps are 20 visits of a pair."""
    run = config(**SETTINGS).model_copy(update={"max_train_steps": 50})
    said = [repeats_note(run.model_copy(update={"reference_draws": draws}), 10, 4) for draws in (4, 5, 20, None)]
    assert said[1:] == [None] * 3
    assert "visits a pair 20 times, so that each draw is trained on 5 times" in said[0]
    assert "set it to 5 or more" in said[0]


def test_it_wants_an_objective_with_a_reference(config, tmp_path, capsys):
    raw = config().model_dump(mode="json") | {"objective": "supervised_chosen", "reference_draws": 4}
    (tmp_path / "run.yaml").write_text(json.dumps(raw))
    assert main(["check", str(tmp_path / "run.yaml")]) != 0
    assert "`reference_draws` is 4, but `objective` supervised_chosen has no reference; leave it out" in (
        capsys.readouterr().err
    )


def test_a_run_of_before_has_the_same_digest(config):
    run = config()
    assert parse_config(run.model_dump(mode="json") | {"reference_draws": None}).sha256() == run.sha256()
    assert parse_config(run.model_dump(mode="json") | {"reference_draws": 4}).sha256() != run.sha256()
