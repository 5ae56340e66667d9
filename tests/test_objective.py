"""Eq. 13 and 14 on hand-made numbers, and the gradient of one graph at a time against the joint one."""

import math

import pytest
import torch
from torch import nn

from chats import objective
from chats.objective import OBJECTIVES, PairErrors


def errors_of(chosen, rejected, chosen_reference, rejected_reference):
    return PairErrors(*(torch.tensor(values) for values in (chosen, rejected, chosen_reference, rejected_reference)))


def test_squared_error_is_the_mean_over_the_elements_of_each_sample():
    # Sample 1: (1² + 2² + 0² + 1²) / 4 = 1.5. Sample 2: (4 · 0.5²) / 4 = 0.25.
    prediction = torch.tensor([[[1.0, 2.0], [0.0, -1.0]], [[0.5, 0.5], [0.5, 0.5]]])
    error = objective.squared_error(prediction, torch.zeros(2, 2, 2))
    torch.testing.assert_close(error, torch.tensor([1.5, 0.25]))


def test_squared_error_is_taken_in_fp32():
    # In fp16 the square of 300 is infinite; in bf16 1 + 2⁻⁹ is 1.
    assert (
        objective.squared_error(torch.full((1, 2), 300.0, dtype=torch.float16), torch.zeros(1, 2, dtype=torch.float16))
        == 90000.0
    )
    assert objective.squared_error(torch.ones(1, 2, dtype=torch.bfloat16), torch.full((1, 2), 1 + 2**-9)) == 2**-18
    assert objective.squared_error(torch.ones(1, 2, dtype=torch.float64), torch.zeros(1, 2)).dtype == torch.float64
    # The prediction's precision is the loss's, not that of a target which came in double from the schedule.
    assert objective.squared_error(torch.ones(1, 2), torch.zeros(1, 2, dtype=torch.float64)).dtype == torch.float32


def test_chats_loss_eq_13():
    # Δ⁺ = 0.010 − 0.011 = −0.001, Δ⁻ = 0.0200 − 0.0205 = −0.0005, so z = −1000 · (−0.0015) = 1.5 and L = log(1 +
    # e^−1.5) = 0.2014133. Second pair: Δ⁺ = 0.001, Δ⁻ = 0.002, z = −3, L = log(1 + e³) = 3.0485874, σ(−z) = 0.9525741.
    # Third: nothing changed, L = log 2.
    errors = errors_of([0.010, 0.011, 0.3], [0.0200, 0.012, 0.4], [0.011, 0.010, 0.3], [0.0205, 0.010, 0.4])
    losses, metrics = objective.chats_loss(errors)
    torch.testing.assert_close(losses, torch.tensor([0.2014133, 3.0485874, math.log(2)]), rtol=1e-5, atol=1e-5)
    assert torch.equal(metrics["error_chosen"], errors.chosen)
    assert torch.equal(metrics["error_rejected"], errors.rejected)
    torch.testing.assert_close(metrics["delta_chosen"], torch.tensor([-0.001, 0.001, 0.0]), rtol=0, atol=1e-8)
    torch.testing.assert_close(metrics["delta_rejected"], torch.tensor([-0.0005, 0.002, 0.0]), rtol=0, atol=1e-8)
    torch.testing.assert_close(metrics["z"], torch.tensor([1.5, -3.0, 0.0]), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(metrics["gate"], torch.tensor([0.1824255, 0.9525741, 0.5]), rtol=1e-4, atol=1e-6)
    assert metrics["implicit_accuracy"].tolist() == [1.0, 0.0, 0.5]


def test_a_side_that_gets_worse_can_be_outweighed_by_the_other():
    # The rewards are added (Eq. 9), so Δ⁻ < 0 is rewarded. A DPO difference on the same numbers: z = −1000 · (0.001 +
    # 0.003) = −4.
    errors = errors_of([0.011], [0.007], [0.010], [0.010])
    assert objective.chats_loss(errors)[1]["z"].item() == pytest.approx(2.0, rel=1e-4)
    assert objective.diffusion_dpo_loss(errors)[1]["z"].item() == pytest.approx(-4.0, rel=1e-4)


def test_loss_does_not_overflow():
    # L = log(1 + e^−z) is −z = 10⁵ for z = −10⁵, where e^−z alone is infinite in fp32.
    losses, metrics = objective.chats_loss(errors_of([100.0], [0.0], [0.0], [0.0]))
    assert losses.item() == pytest.approx(1e5)
    assert metrics["gate"].item() == 1.0


def test_diffusion_dpo_agrees_with_its_authors_factor():
    # Their code: −log σ(−½ · 5000 · [(d_w − d_l) − (ref_w − ref_l)]) = −log σ(−2500 · (0.001 − 0.0006)) = log(1 + e) =
    # 1.3132617
    errors = errors_of([0.011], [0.0206], [0.010], [0.0200])
    losses, _ = objective.diffusion_dpo_loss(errors, beta=2500.0)
    assert losses.item() == pytest.approx(1.3132617, rel=1e-4)


def test_plain_baselines():
    errors = errors_of([0.5], [0.25], [0.0], [0.0])
    assert objective.supervised_chosen_loss(errors)[0].item() == 0.5
    assert objective.supervised_all_loss(errors)[0].item() == 0.375
    assert objective.two_models_without_reference_loss(errors)[0].item() == 0.75
    assert objective.supervised_chosen_loss(PairErrors(torch.tensor([0.5])))[1] == {"error_chosen": torch.tensor([0.5])}


def test_gradient_weights_are_the_gate():
    # L = log(1 + e^−z), dL/dz = −σ(−z), dz/dd = −T for both sides of CHATS, so both weights are T σ(−z): 1000 ·
    # 0.1824255.
    weights = objective.gradient_weights(OBJECTIVES["chats"], errors_of([0.010], [0.0200], [0.011], [0.0205]))
    for weight in weights:
        assert weight.item() == pytest.approx(182.4255, rel=1e-4)
    # Diffusion-DPO pushes the rejected error up: −T σ(−z), here with z = −1000 · (−0.001 + 0.0005) = 0.5, σ(−0.5) =
    # 0.3775407.
    chosen, rejected = objective.gradient_weights(
        OBJECTIVES["diffusion_dpo"], errors_of([0.010], [0.0200], [0.011], [0.0205])
    )
    assert (chosen.item(), rejected.item()) == (pytest.approx(377.5407, rel=1e-4), pytest.approx(-377.5407, rel=1e-4))


@pytest.mark.parametrize(
    ("name", "expected"),
    [("supervised_chosen", (1.0, 0.0)), ("supervised_all", (0.5, 0.5)), ("two_models_without_reference", (1.0, 1.0))],
)
def test_gradient_weights_of_the_plain_baselines(name, expected):
    with torch.no_grad():
        weights = objective.gradient_weights(OBJECTIVES[name], PairErrors(torch.tensor([0.3]), torch.tensor([0.2])))
    assert tuple(weight.item() for weight in weights) == expected


def test_one_side_alone_has_one_weight():
    chosen, rejected = objective.gradient_weights(OBJECTIVES["supervised_chosen"], PairErrors(torch.tensor([0.3, 0.2])))
    assert chosen.tolist() == [1.0, 1.0]
    assert rejected is None


def test_the_weights_leave_the_errors_and_their_graph_alone():
    """The errors that are weighed are backpropagated afterwards."""
    errors = errors_of([0.3], [0.2], [0.1], [0.1])
    objective.gradient_weights(OBJECTIVES["chats"], errors)
    assert not errors.chosen.requires_grad
    assert not errors.rejected.requires_grad


@pytest.mark.parametrize("name", sorted(OBJECTIVES))
def test_one_graph_at_a_time_gives_the_joint_gradient(name):
    torch.manual_seed(0)
    spec, batch = OBJECTIVES[name], 5
    members = nn.ModuleList(
        nn.Sequential(nn.Conv2d(4, 8, 3), nn.SiLU(), nn.Conv2d(8, 4, 3)) for _ in range(spec.models)
    )
    reference = nn.Conv2d(4, 4, 5).requires_grad_(False)
    inputs, targets = torch.randn(2, batch, 4, 8, 8), torch.randn(2, batch, 4, 4, 4)
    models = (members[0], members[-1])

    def error(side):
        return objective.squared_error(models[side](inputs[side]), targets[side])

    references = [objective.squared_error(reference(inputs[side]), targets[side]) for side in (0, 1)]
    losses, _ = spec.loss(PairErrors(error(0), error(1), *references), 3.0)
    losses.mean().backward()
    joint = [None if p.grad is None else p.grad.clone() for p in members.parameters()]

    members.zero_grad()
    with torch.no_grad():
        errors = PairErrors(error(0), error(1), *references)
    weights = objective.gradient_weights(spec, errors, 3.0)
    for side in (0, 1):
        ((weights[side] * error(side)).sum() / batch).backward()
    for expected, parameter in zip(joint, members.parameters(), strict=True):
        torch.testing.assert_close(parameter.grad, expected, rtol=1e-6, atol=1e-6)
    assert any(gradient.abs().max() > 1e-3 for gradient in joint), "the gradients compared are not all zero"


@pytest.mark.parametrize("name", sorted(OBJECTIVES))
def test_metrics_are_detached_and_the_reference_is_frozen(name):
    errors = PairErrors(*(torch.rand(3, requires_grad=True) for _ in range(4)))
    losses, metrics = OBJECTIVES[name].loss(errors, 1000.0)
    assert not any(value.requires_grad for value in metrics.values())
    losses.sum().backward()
    assert errors.chosen.grad is not None
    assert errors.chosen_reference.grad is None
    assert errors.rejected_reference.grad is None


MODELS = {
    # Eq. 13: a preferred model on the chosen images and a dispreferred one on the rejected; Table 4, "two models".
    "chats": 2,
    "two_models_without_reference": 2,
    # Wallace et al. fine-tune one model on both images, which is what a pair's difference is compared with.
    "diffusion_dpo": 1,
    # Table 4, "single model".
    "supervised_chosen": 1,
    "supervised_all": 1,
}


@pytest.mark.parametrize("name", sorted(OBJECTIVES))
def test_an_objective_asks_for_the_errors_that_its_loss_reads(name):
    """The trainer computes no others: a pass of a denoiser each."""
    spec = OBJECTIVES[name]
    assert spec.models == MODELS[name]
    full = dict(zip(("chosen", "rejected", "chosen_reference", "rejected_reference"), torch.rand(4, 1), strict=True))
    losses = spec.loss(PairErrors(**full), 1.0)[0]

    def is_read(error):
        """Whether the loss changes with this error."""
        return not torch.equal(spec.loss(PairErrors(**{**full, error: full[error] + 1}), 1.0)[0], losses)

    assert is_read("chosen")
    assert is_read("rejected") == spec.needs_rejected
    assert is_read("chosen_reference") == is_read("rejected_reference") == spec.needs_reference
    asked = {error: value for error, value in full.items() if error == "chosen" or is_read(error)}
    assert torch.equal(spec.loss(PairErrors(**asked), 1.0)[0], losses)


@pytest.mark.parametrize("name", sorted(OBJECTIVES))
def test_the_default_of_beta_is_the_papers(name):
    # T "is fixed as 1000" (App. B.2). The comparison with Diffusion-DPO is at the same factor.
    errors = errors_of([0.011], [0.012], [0.010], [0.0095])
    spec = OBJECTIVES[name]
    assert torch.equal(spec.loss(errors)[0], spec.loss(errors, 1000.0)[0])
    weights = objective.gradient_weights(spec, errors), objective.gradient_weights(spec, errors, 1000.0)
    assert weights[0] == weights[1]


@pytest.mark.parametrize("name", sorted(OBJECTIVES))
def test_a_loss_reports_what_its_objective_names(name):
    """Processes sum the metrics by these names, also one that had no pair in a step: a name too many or too few and
    their sums do not match."""
    spec = OBJECTIVES[name]
    everything = errors_of([0.5], [0.25], [0.4], [0.3])
    asked = PairErrors(
        everything.chosen,
        everything.rejected if spec.needs_rejected else None,
        everything.chosen_reference if spec.needs_reference else None,
        everything.rejected_reference if spec.needs_reference else None,
    )
    for errors in (asked, everything):
        _, metrics = spec.loss(errors, 1.0)
        assert sorted(metrics) == sorted(spec.metrics)


def test_missing_errors_are_named():
    with pytest.raises(ValueError, match="`rejected_reference` are needed") as error:
        objective.chats_loss(PairErrors(torch.ones(1), torch.ones(1), torch.ones(1)))
    assert str(error.value) == (
        "this objective compares with the reference model: `chosen_reference` and `rejected_reference` are needed"
    )
    with pytest.raises(ValueError, match="`rejected_reference` are needed"):
        objective.diffusion_dpo_loss(PairErrors(torch.ones(1), torch.ones(1), rejected_reference=torch.ones(1)))
    with pytest.raises(ValueError, match="`rejected` is needed") as error:
        objective.supervised_all_loss(PairErrors(torch.ones(1)))
    assert str(error.value) == "this objective trains on the rejected images too: `rejected` is needed"
