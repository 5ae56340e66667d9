"""A pair and its guidance as one model: the taught prediction and the loss on hand-made numbers, a student's first
factors, and what a distilled file says of itself."""

import pytest
import torch

from chats import distillation, pair
from chats.distilled import DistilledMetadata, distilled_members
from chats.lowrank import LowRank
from chats.lowrank.truncation import in_rank_of
from chats.objective import PairErrors, gradient_weights

NUMBERS = {"prompt": 2.0, "null": 3.0, "proxy": 7.0}


def taught(guides, **settings):
    asked = []

    def negative(which):
        asked.append(which)
        return torch.full((len(guides), 1, 1, 1), NUMBERS[which])

    guidance = distillation.Guidance(
        **{"form": "proxy", "negative": "base", "guidance_scale": 4.0, "alpha": 0.5, **settings}
    )
    preferred = torch.ones(len(guides), 1, 1, 1)
    return distillation.taught_prediction(preferred, negative, guidance, torch.tensor(guides)).flatten().tolist(), asked


def test_what_is_taught():
    # Eq. 17: 5·1 − 4·7 = −23. Eq. 16: 5·1 + 0.5·4·2 − 1.5·4·3 = −9. Outside of the interval ε⁺ = 1.
    assert taught([True, False]) == ([-23.0, 1.0], ["proxy"])
    assert taught([False, True], form="exact") == ([1.0, -9.0], ["prompt", "null"])
    # α = 0: 5·1 − 4·3 = −7.
    assert taught([True], form="exact", alpha=0.0)[0] == [-7.0]
    assert taught([False, False]) == ([1.0, 1.0], []), "nothing is asked where nothing is guided"


def test_the_loss_is_the_error_and_its_gradient_one():
    errors = PairErrors(torch.tensor([0.5, 2.0]), chosen_reference=torch.tensor([1.0, 4.0]))
    losses, metrics = distillation.DISTILLATION.loss(errors, 1000.0)
    assert losses.tolist() == [0.5, 2.0]
    assert {name: value.tolist() for name, value in metrics.items()} == {"preferred_error": [1.0, 4.0]}
    assert set(metrics) == set(distillation.DISTILLATION.metrics)
    weights, rejected = gradient_weights(distillation.DISTILLATION, errors)
    assert (weights.tolist(), rejected) == ([1.0, 1.0], None)


@pytest.mark.parametrize("kernel", [(), (3, 3)])
@pytest.mark.parametrize("rank", [2, 4, 6])
def test_factors_in_another_rank_begin_as_the_difference(kernel, rank):
    generator = torch.Generator().manual_seed(0)
    difference = LowRank(torch.randn(4, 5, *kernel, generator=generator), torch.randn(8, 4, generator=generator))
    fresh = torch.randn(rank, 5, *kernel, generator=generator)
    begun = in_rank_of(difference, fresh)
    assert (begun.down.shape, begun.up.shape) == (fresh.shape, (8, rank))
    product = difference.up @ difference.down.flatten(1)
    left, values, right = torch.linalg.svd(product)
    best = (left[:, :rank] * values[:rank]) @ right[: len(values)][:rank] if rank < 4 else product
    torch.testing.assert_close(begun.up @ begun.down.flatten(1), best, rtol=1e-4, atol=1e-4)
    if rank >= 4:
        assert torch.equal(begun.down[:4], difference.down)
        assert torch.equal(begun.up[:, :4], difference.up)
        # What is new changes nothing, and can learn: its down is not zero.
        assert torch.equal(begun.down[4:], fresh[4:])
        assert not begun.up[:, 4:].any()


def test_of_a_difference_of_zero_all_is_new():
    fresh = torch.ones(2, 5)
    begun = in_rank_of(LowRank(torch.zeros(4, 5), torch.zeros(8, 4)), fresh)
    assert torch.equal(begun.down, fresh)
    assert not begun.up.any()


DISTILLED = DistilledMetadata(
    pair_id="a1",
    pair_name="mine",
    form="proxy",
    negative="dispreferred",
    guidance_scale=5.0,
    alpha=0.5,
    start_percent=0.0,
    end_percent=1.0,
    prediction_type="epsilon",
    resolution=512,
    step=160,
)


def test_a_distilled_file_says_so_and_is_no_member(tmp_path):
    path = tmp_path / "d.safetensors"
    pair.write_member(path, {"weight": torch.ones(2, 3)}, DISTILLED)
    header = pair.read_header(path)
    assert (header["chats.distilled.cfg"], header["chats.distilled.pair_id"]) == ("1", "a1")
    assert DistilledMetadata.from_header(header) == DISTILLED
    assert pair.read_metadata(path) is None
    member = tmp_path / "p.safetensors"
    pair.write_member(member, {"weight": torch.ones(2, 3)}, pair.PairMetadata("preferred"))
    assert DistilledMetadata.from_header(pair.read_header(member)) is None
    assert distilled_members(member, None) == {}
    assert distilled_members(member, path) == {
        "dispreferred": "the dispreferred file was distilled from a pair: cfg 1, no pair needed, load it alone"
    }


def test_what_it_was_made_of_in_words():
    assert DISTILLED.origin() == "the pair mine, form proxy, cfg 6 (s = 5), alpha 0.5"
    other = DistilledMetadata(pair_id="a1", negative="base", end_percent=0.8)
    assert other.origin() == "the pair a1, the base as the negative, guided from 0 to 0.8 of the noise schedule"
    assert DistilledMetadata().origin() == "a pair"


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        ({"alpha": "many"}, "`chats.distilled.alpha` = `many`, expected a number"),
        ({"form": "both"}, "`chats.distilled.form` = `both`, expected `proxy` or `exact`"),
        ({"format_version": "9"}, "`chats.distilled.format_version` 9, this pack reads up to 1; update ComfyUI-CHATS"),
    ],
)
def test_metadata_that_cannot_be_understood(entry, words):
    header = {f"chats.distilled.{key}": value for key, value in entry.items()}
    with pytest.raises(pair.PairError, match=words):
        DistilledMetadata.from_header(header, "d.safetensors")
