"""Which pair is asked next: of few pictures by how often they were compared, of many by Bradley and Terry's model."""

import itertools
import math
import random
from collections import Counter

import pytest
import taste_sets
from taste_sets import RATER, answer_all, drawn, ids, rating

from chats.taste import bradley_terry, pairing
from chats.taste.records import pair_of


def test_one_comparison_of_two_pictures():
    """By hand: with s₁ = −s₂ = x the slope is 1/(1 + e^(2x)) − x = 0, so x = 0.337416 (e^0.674832 = 1.963702).
    The curvature is w = x (1 − x) = 0.223566, the negative Hessian [[1 + w, −w], [−w, 1 + w]], its inverse
    [[1 + w, w], [w, 1 + w]] / (1 + 2w) = [[0.845511, 0.154489], …], and the distance has the variance 2 / (1 + 2w)
    = 1.382043: 0.674832 / √1.382043 = 0.574030 standard deviations."""
    strengths, covariance = bradley_terry.fit(2, [(0, 1, 1.0)])
    assert strengths == pytest.approx([0.337416, -0.337416], abs=1e-6)
    assert covariance[0] == pytest.approx([0.845511, 0.154489], abs=1e-6)
    assert bradley_terry.doubt(strengths, covariance, 0, 1) == pytest.approx(-0.574030, abs=2e-6)
    assert bradley_terry.doubt(strengths, covariance, 1, 0) == pytest.approx(-0.574030, abs=2e-6)


def test_nothing_is_known_without_comparisons_and_ties_say_equal():
    assert bradley_terry.fit(2, []) == ([0.0, 0.0], [[1.0, 0.0], [0.0, 1.0]])
    strengths, covariance = bradley_terry.fit(2, [(0, 1, 0.5), (1, 0, 0.5)])
    assert strengths == pytest.approx([0, 0])
    assert covariance[0][0] == pytest.approx(1.25 / 1.5)  # w = 1/4


def test_the_fit_is_where_the_posterior_is_flat():
    """The gradient of Σ log σ(s_w − s_l) − Σ s²/2, by differences of the function itself."""
    coin = random.Random(3)
    wins = [(*coin.sample(range(7), 2), coin.choice((0.5, 1.0))) for _ in range(40)]

    def posterior(s):
        return sum(-w * math.log1p(math.exp(s[j] - s[i])) for i, j, w in wins) - sum(x * x for x in s) / 2

    strengths, _ = bradley_terry.fit(7, wins)
    for at, step in itertools.product(range(7), (1e-3, -1e-3)):
        moved = [s + step * (number == at) for number, s in enumerate(strengths)]
        assert posterior(moved) < posterior(strengths)


def test_a_picture_that_always_wins_has_a_finite_strength():
    strengths, covariance = bradley_terry.fit(3, [(0, 1, 1.0)] * 500 + [(0, 2, 1.0)] * 500)
    assert all(map(math.isfinite, strengths))
    assert strengths[0] > 3
    assert all(covariance[at][at] > 0 for at in range(3))


@pytest.mark.parametrize(("count", "pairs"), [(1, 0), (2, 1), (3, 3), (4, 6), (5, 7), (6, 9), (8, 12), (32, 80)])
def test_how_many_pairs_of_a_prompt_are_asked(tmp_path, count, pairs):
    """Of few pictures each in at most three: 5 · 3 / 2 = 7. Of many ⌈log2 n⌉ a picture: 6 · 3 / 2 = 9, 32 · 5 / 2."""
    one = drawn(tmp_path / "a", count)
    assert one.progress(RATER)["waiting"] == pairs
    answer_all(one, lambda shown: one.rng.choice(("left", "right", "tie", "skip")))
    progress = one.progress(RATER)
    assert (progress["rated"], progress["waiting"]) == (pairs, 0)
    if count < pairing.MANY:
        counts = Counter(itertools.chain.from_iterable(vote.pair for vote in one.votes() if not vote.repeat))
        assert max(counts.values(), default=0) <= 3


def test_the_least_compared_come_first(tmp_path):
    one = drawn(tmp_path / "a", 4, 4, 2)
    seen: Counter[str] = Counter()
    for number in range(5):
        shown = one.next_pair(RATER)
        assert seen[shown.left] == seen[shown.right] == 0  # five disjoint pairs before any picture comes twice
        seen.update(shown.pair)
        one.vote(rating(number), shown.left, shown.right, "left", RATER)
    assert len(seen) == 10


def test_of_many_pictures_the_order_that_is_known_least_is_asked(tmp_path):
    """All have been compared as often, three a picture but for what is to be asked: 0 and 1 beat all of 2 to 5, which
    are alike among themselves. So 0 against 1 is known least together with the pairs among 2 to 5, and none across."""
    one = drawn(tmp_path / "a", 6)
    best, others = ids(one)[:2], ids(one)[2:]
    for number, (strong, weak) in enumerate(itertools.product(best, others)):
        if number < 7:
            one.vote(rating(number), strong, weak, "left", RATER)
    # By symmetry only up to the pair that is missing: the weakest knowledge is inside the two groups.
    for seed in range(20):
        one.rng.seed(seed)
        shown = one.next_pair(RATER)
        assert (shown.left in best) == (shown.right in best)


def test_a_full_ranking_is_found_with_the_budget(tmp_path):
    """With a rater of one mind, the wins of 16 pictures with 32 comparisons order most of the 120 pairs right."""
    one = drawn(tmp_path / "a", 16)
    order = {name: at for at, name in enumerate(random.Random(5).sample(ids(one), 16))}
    answer_all(one, lambda shown: "left" if order[shown.left] < order[shown.right] else "right")
    number = {name: at for at, name in enumerate(order)}
    wins = [
        (number[vote.chosen], number[next(name for name in vote.pair if name != vote.chosen)], 1.0)
        for vote in one.votes()
    ]
    strengths, _ = bradley_terry.fit(16, wins)
    right = sum(strengths[i] > strengths[j] for i, j in itertools.combinations(range(16), 2))
    assert right > 0.8 * 120


def test_more_pictures_than_a_block_are_asked_within_blocks(tmp_path):
    sizes = [[len(block) for block in pairing.blocks_of(["x"] * count)] for count in (1, 37, 38, 64, 69, 70)]
    assert sizes == [[1], [37], [32, 6], [32, 32], [32, 37], [32, 32, 6]]
    one = drawn(tmp_path / "a", 38)
    first = set(ids(one)[:32])
    for _ in range(30):
        shown = one.next_pair(RATER)
        assert (shown.left in first) == (shown.right in first)


def test_sides_come_by_a_coin(tmp_path):
    one = drawn(tmp_path / "a", 2)
    lefts = Counter(one.next_pair(RATER).left for _ in range(200))
    assert len(lefts) == 2
    assert min(lefts.values()) > 60


def test_pairs_that_a_window_has_are_not_given_again(tmp_path):
    one = drawn(tmp_path / "a", 2, 2, 2)
    held = []
    for _ in range(3):
        held.append(one.next_pair(RATER, held).pair)
    assert len(set(held)) == 3
    assert one.next_pair(RATER, [pair[::-1] for pair in held]) is None  # in either order
    assert one.progress(RATER)["waiting"] == 3


def test_two_windows_get_different_pairs_until_nothing_else_is_left(tmp_path):
    one = drawn(tmp_path / "a", 2, 2)
    first, second = one.next_pair(RATER, tab=rating(1)), one.next_pair(RATER, tab=rating(2))
    assert first.pair != second.pair
    assert one.next_pair(RATER, tab=rating(3)) is not None
    assert one.next_pair("another", tab=rating(4)) is not None  # another rater is asked for the same pairs
    one.vote(rating(1), first.left, first.right, "left", RATER)
    assert one.next_pair(RATER, tab=rating(1)).pair == second.pair


def test_five_in_a_hundred_are_repeats_with_the_sides_swapped(tmp_path):
    one = drawn(tmp_path / "a", *[2] * 210)
    shown_before: dict = {}
    order: list = []
    repeats = 0
    for number in range(200):
        shown = one.next_pair(RATER)
        if shown.repeat:
            repeats += 1
            assert shown_before[shown.pair] == (shown.right, shown.left)
            assert shown.pair not in order[-10:]
        shown_before[shown.pair] = (shown.left, shown.right)
        order.append(shown.pair)
        one.vote(rating(number), shown.left, shown.right, "left", RATER, repeat=shown.repeat)
    assert 2 <= repeats <= 25  # 9.5 on average
    assert len({vote.pair for vote in one.votes() if vote.repeat}) == repeats  # none twice
    assert one.progress(RATER)["agreement"] == [0, repeats]  # always left, so never the same picture


def test_agreement_counts_what_was_answered_alike(tmp_path):
    one = drawn(tmp_path / "a", *[2] * 5)
    cases = [("left", "right", 1), ("left", "left", 0), ("tie", "tie", 1), ("tie", "left", 0), ("skip", "left", None)]
    for number, (first, second, _) in enumerate(cases):
        left, right = ids(one, number)
        one.vote(rating(2 * number), left, right, first, RATER)
        one.vote(rating(2 * number + 1), right, left, second, RATER, repeat=True)
    assert one.progress(RATER)["agreement"] == [2, 4]


def test_each_rater_is_asked_for_all(tmp_path):
    one = drawn(tmp_path / "a", 3)
    assert answer_all(one, lambda shown: "left", "one") == 3
    assert one.progress("one")["waiting"] == 0
    assert one.progress("other")["waiting"] == 3
    assert answer_all(one, lambda shown: "left", "scorer:pickscore") == 3
    assert one.progress("other") == {"rated": 0, "waiting": 3, "pairs": 3, "agreement": [0, 0]}


def test_pictures_that_are_removed_are_not_asked_for(tmp_path):
    one = drawn(tmp_path / "a", 3)
    gone = ids(one)[0]
    one.vote(rating(1), gone, ids(one)[1], "left", RATER)
    (tmp_path / "a" / "images" / f"{gone}.png").unlink()
    assert one.counts() == {"candidates": 2, "prompts": 1}
    assert one.progress(RATER)["pairs"] == 0
    assert one.next_pair(RATER).pair == pair_of(*ids(one))
    assert one.notes() == ["pictures of candidates.jsonl that are not in images/: 1"]
    one.add_candidate(b"0 0", "prompt 0")
    assert one.counts()["candidates"] == 3
    assert one.progress(RATER)["pairs"] == 1
    assert one.notes() == []


def test_the_helper_asks_until_nothing_is_left(tmp_path):
    assert taste_sets.answer_all(drawn(tmp_path / "a"), lambda shown: "left") == 0
