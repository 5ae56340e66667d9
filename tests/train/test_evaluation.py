"""The parts of an evaluation that need no model: prompts, conditions, statistics, figures, tables."""

import json
import math
from dataclasses import replace

import pytest

from chats_train.evaluation.conditions import Condition, make_conditions
from chats_train.evaluation.drawing import noise_seed
from chats_train.evaluation.negatives import (
    better_negative,
    compare_negatives,
    keep_verdict,
    negatives_table,
    negatives_verdicts,
)
from chats_train.evaluation.plots import GRID_ROWS, grid_prompts
from chats_train.evaluation.prompts import EvaluationPrompt, read_prompts
from chats_train.evaluation.report import (
    Breakdown,
    as_markdown,
    as_text,
    compute_figures,
    group_table,
    overall_table,
)
from chats_train.evaluation.statistics import (
    Estimate,
    estimate,
    mean_of,
    paired_difference,
    ratio,
    sign_flip_p_value,
    win_rate,
)
from chats_train.support.errors import UserError


def test_the_three_prompt_formats(tmp_path):
    (tmp_path / "mine.txt").write_text("\ufeffa cat\n\n  a dog \n", encoding="utf-8")
    geneval = [
        {"tag": "counting", "include": [{"class": "clock", "count": 2}], "prompt": "a photo of two clocks"},
        {
            "tag": "colors",
            "include": [{"class": "apple", "count": 1, "color": "red"}],
            "prompt": "a photo of a red apple",
        },
    ]
    (tmp_path / "evaluation_metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in geneval))
    (tmp_path / "anime.json").write_text(json.dumps(["a girl, 4k", "a cat"]))
    (tmp_path / "all.json").write_text(json.dumps({"photo": ["a train"], "paintings": ["a vase"]}))
    prompts, repeated = read_prompts(
        tmp_path / name for name in ("mine.txt", "evaluation_metadata.jsonl", "anime.json", "all.json")
    )
    assert [(prompt.text, prompt.group) for prompt in prompts] == [
        ("a cat", "mine"),
        ("a dog", "mine"),
        ("a photo of two clocks", "counting"),
        ("a photo of a red apple", "colors"),
        ("a girl, 4k", "anime"),
        ("a train", "photo"),
        ("a vase", "paintings"),
    ]
    assert repeated == 1
    assert prompts[2].metadata["include"] == [{"class": "clock", "count": 2}]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("p.csv", "a", r"p\.csv; known are \.txt"),
        ("p.txt", "\n \n", "which has no prompt; write one a line"),
        ("p.txt", b"\xff\xfe", "cannot be read .*UTF-8"),
        ("p.jsonl", '{"prompt": "a"}\n{"tag": "b"}\n', "whose line 2 has no `prompt`"),
        ("p.jsonl", '{"prompt": "a"}\n{"prom', "line 2, is not JSON"),
        ("p.json", '{"a": "b"}', "holds a list of prompts, or such lists by style"),
        ("p.json", '["a",', "is not JSON"),
    ],
)
def test_a_bad_prompt_file_is_a_sentence(tmp_path, name, content, message):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError, match=message):
        read_prompts([path])


def test_a_missing_prompt_file_is_a_sentence(tmp_path):
    with pytest.raises(UserError, match="which cannot be read"):
        read_prompts([tmp_path / "none.txt"])


def test_every_method_gets_every_guidance_scale():
    conditions = make_conditions(True, [5, 7.5, 5], [0, 0.5], ["exact", "proxy"])
    assert [condition.name for condition in conditions] == [
        "base, CFG, s=5",
        "base, CFG, s=7.5",
        "preferred, CFG, s=5",
        "preferred, CFG, s=7.5",
        "preferred, base as negative, s=5",
        "preferred, base as negative, s=7.5",
        "CHATS α=0, s=5",
        "CHATS α=0, s=7.5",
        "CHATS proxy α=0.5, s=5",
        "CHATS proxy α=0.5, s=7.5",
        "CHATS exact α=0.5, s=5",
        "CHATS exact α=0.5, s=7.5",
    ]
    # α = 0 at s = 7.5 is compared with α = 0.5 at s = 5.
    assert [condition.total_scale for condition in conditions[6:10]] == [5, 7.5, 7.5, 11.25]
    assert len({condition.folder for condition in conditions}) == len(conditions)
    alone = [each.models for each in make_conditions(False, [5], [0.5], ["proxy"])]
    assert alone == ["base", "preferred", "base_negative"]
    with pytest.raises(UserError, match="`--guidance-scale` is -1"):
        make_conditions(True, [-1], [0.5], ["proxy"])


def test_noise_is_of_the_prompt_and_the_seed():
    seeds = {noise_seed(prompt, seed) for prompt in ("a cat", "a dog") for seed in range(3)}
    assert len(seeds) == 6
    assert all(0 <= seed < 2**32 for seed in seeds)
    assert noise_seed("a cat", 0) == noise_seed("a cat", 0)


def test_errors_are_over_prompts_not_over_pictures():
    # Prompt means 2, 4, 9: mean 5, variance ((−3)² + (−1)² + 4²) / 2 = 13, error √(13 / 3).
    values = {("a", 0): 1.0, ("a", 1): 3.0, ("b", 0): 4.0, ("b", 1): 4.0, ("c", 0): 8.0, ("c", 1): 10.0}
    found = estimate(values)
    assert (found.mean, found.prompts, found.pictures) == (5.0, 3, 6)
    assert found.standard_error == pytest.approx(math.sqrt(13 / 3))
    # A prompt repeated from many like seeds adds nothing; an error over pictures would shrink.
    repeated = {(prompt, seed): value for prompt, value in (("a", 2.0), ("b", 4.0), ("c", 9.0)) for seed in range(100)}
    assert estimate(repeated).standard_error == pytest.approx(math.sqrt(13 / 3))
    assert math.isnan(estimate({("a", 0): 1.0, ("a", 1): 2.0}).standard_error)
    with pytest.raises(ValueError, match="no value"):
        estimate({})


def test_paired_difference_and_wins_by_hand():
    values = {("a", 0): 2.0, ("a", 1): 5.0, ("b", 0): 1.0, ("b", 1): 1.0, ("c", 0): 7.0}
    baseline = {("a", 0): 1.0, ("a", 1): 2.0, ("b", 0): 1.0, ("b", 1): 3.0, ("d", 0): 0.0}
    # In common: a (1, 3), b (0, −2); prompt means 2, −1; mean 0.5, error √(4.5 / 2) = 1.5.
    assert paired_difference(values, baseline) == Estimate(0.5, pytest.approx(1.5), 2, 4)
    # Wins: a (1, 1), b (½, 0); prompt means 1, ¼; error √((3/8)² · 2 / 2) = 3/8.
    assert win_rate(values, baseline) == Estimate(0.625, pytest.approx(0.375), 2, 4)
    with pytest.raises(ValueError, match="no value"):
        paired_difference(values, {("e", 0): 1.0})


def test_sign_flips_count_how_often_chance_does_as_well():
    # Three prompts that are all better by 1: of the 8 ways to set the signs, 2 have a sum of 3 or -3.
    better = {(prompt, seed): 1.0 for prompt in "abc" for seed in range(4)}
    baseline = dict.fromkeys(better, 0.0)
    assert sign_flip_p_value(better, baseline) == pytest.approx(0.25, abs=0.01)
    assert sign_flip_p_value(baseline, better) == pytest.approx(0.25, abs=0.01)
    assert sign_flip_p_value(better, better) == 1.0
    # Seeds of one prompt are no further prompts: with two prompts every setting but two of four is as far.
    assert sign_flip_p_value({("a", 0): 1.0, ("a", 1): 1.0, ("b", 0): 1.0}, baseline) == pytest.approx(0.5, abs=0.01)
    with pytest.raises(ValueError, match="no value to compare"):
        sign_flip_p_value({("z", 0): 1.0}, baseline)


def test_pairing_removes_what_prompts_share():
    values = {(str(prompt), 0): 10.0 * prompt + prompt % 2 for prompt in range(20)}
    baseline = {(str(prompt), 0): 10.0 * prompt for prompt in range(20)}
    assert paired_difference(values, baseline).standard_error < estimate(values).standard_error / 50


def test_figures_and_tables():
    base, other = Condition("base", 5.0), Condition("pair", 5.0, 0.5, "exact")
    scores = {"s": {base: {("a", 0): 1.0, ("b", 0): 2.0}, other: {("a", 0): 2.0, ("b", 0): 5.0}}}
    figures = compute_figures(scores, {"a": "x|y", "b": "z"})
    assert figures[0].difference is None
    assert figures[1].difference.mean == 2.0
    assert figures[1].wins.mean == 1.0
    rows = overall_table(figures)
    assert rows[1] == ["base, CFG", "5", "5", "2", "1.500 ± 0.500", "–", "–"]
    assert rows[2] == ["CHATS exact α=0.5", "5", "7.5", "2", "3.500 ± 1.500", "+2.000 ± 1.000", "100.0 ± 0.0"]
    assert group_table(figures)[0] == ["method", "s", "x|y", "z"]
    assert as_markdown(group_table(figures))[0] == "| method | s | x\\|y | z |"
    assert len({len(line) for line in as_text(rows)}) == 1
    written = json.loads(json.dumps(figures[1].as_json(), allow_nan=False))
    assert written["groups"]["z"] == {"mean": 5.0, "standard_error": None, "prompts": 1, "pictures": 1}
    assert (written["total_scale"], written["condition"]["form"]) == (7.5, "exact")


def by_prompt(*values):
    return {(str(prompt), 0): value for prompt, value in enumerate(values)}


def test_which_negative_is_better():
    base, other = Condition("base_negative", 2.0), Condition("base_negative", 4.0)
    chats, exact = Condition("pair", 2.0, 0.0, "proxy"), Condition("pair", 4.0, 0.5, "exact")
    lone, still = Condition("pair", 7.0, 0.5, "proxy"), Condition("pair", 0.0, 0.5, "proxy")
    low, high, mixed = by_prompt(*[1.0] * 12), by_prompt(*[2.0] * 12), by_prompt(*[2.0, 0.0] * 6)
    # At s = 7 there is no base to compare with, and at s = 0 a negative has no weight.
    scores = {"up": {base: low, other: low, chats: high, exact: mixed, lone: high, still: high}}
    scores["up"][Condition("base_negative", 0.0)] = low
    scores["down"] = {base: high, chats: low}
    scores["both"] = {base: low, other: high, chats: high, exact: low}
    scores["few"] = {base: by_prompt(1.0, 1.0), chats: by_prompt(2.0, 2.0)}
    found = {(each.scorer, each.condition): each for each in compare_negatives(scores)}
    assert list(found) == [
        *(("up", each) for each in (chats, exact)),
        ("down", chats),
        *(("both", each) for each in (chats, exact)),
        ("few", chats),
    ]
    # Twelve like signs: 2 of 2¹² settings are as far. Two comparisons double that, one does not.
    assert found["up", chats].p_value == pytest.approx(2 * 2 / 2**12, abs=1e-3)
    assert found["down", chats].p_value == pytest.approx(2 / 2**12, abs=1e-3)
    assert (found["up", chats].better, found["up", chats].difference.mean) == ("dispreferred", 1.0)
    assert (found["down", chats].better, found["down", chats].difference.mean) == ("base", -1.0)
    # Two prompts can show nothing, however far apart: half of all signs are as far.
    assert found["up", exact].better is found["few", chats].better is None
    assert negatives_verdicts(list(found.values())) == [
        "up: the dispreferred model is the better negative for this pair (1 of 2 comparisons)",
        "down: the untouched base is the better negative for this pair (1 of 1 comparisons)",
        "both: which negative is better depends on the settings",
        "few: no difference between the dispreferred model and the untouched base as the negative",
    ]
    rows = negatives_table(list(found.values()))
    assert rows[2] == ["up: CHATS exact α=0.5", "4", "+0.000 ± 0.302", "1", "no difference"]
    assert rows[3][-1] == "the untouched base"


def test_the_better_negative_is_kept_where_all_scorers_agree(tmp_path):
    base, chats = Condition("base_negative", 2.0), Condition("pair", 2.0, 0.0, "proxy")
    low, high, mixed = by_prompt(*[1.0] * 12), by_prompt(*[2.0] * 12), by_prompt(*[2.0, 0.0] * 6)
    down, still = {base: high, chats: low}, {base: low, chats: mixed}
    one, other, none = (
        compare_negatives(scores)
        for scores in ({"a": down, "b": still}, {"a": down, "b": {base: low, chats: high}}, {"b": still})
    )
    assert [better_negative(each) for each in (one, other, none, [])] == ["base", None, None, None]
    (line,) = keep_verdict(tmp_path, "of these weights", one)
    assert "the untouched base is the better negative; `export` writes that into the pair's files" in line
    kept = tmp_path / "better_negative.json"
    assert json.loads(kept.read_text()) == {"weights_sha256": "of these weights", "negative": "base"}
    # A probe alone says nothing of it; a later evaluation without a clear verdict takes it back.
    assert keep_verdict(tmp_path, "of these weights", []) == []
    assert json.loads(kept.read_text())["negative"] == "base"
    assert keep_verdict(tmp_path, "of these weights", other) == []
    assert json.loads(kept.read_text())["negative"] is None


def test_every_group_is_in_the_grid():
    prompts = [EvaluationPrompt(f"{group} {number}", group) for group in "ab" for number in range(20)]
    chosen = grid_prompts([*prompts, EvaluationPrompt("c 0", "c")])
    assert len(chosen) == GRID_ROWS
    assert [prompt.text for prompt in chosen[:4]] == ["a 0", "b 0", "c 0", "a 1"]


def test_a_benchmarks_overall_is_the_mean_of_its_categories():
    base, pair = Condition("base", 5.0), Condition("pair", 5.0, 0.5, "proxy")
    # Two prompts of `one`, one of `two`, two seeds each: 1 is right.
    right = {
        base: {("a", 0): 1.0, ("a", 1): 0.0, ("b", 0): 0.0, ("b", 1): 0.0, ("c", 0): 0.0, ("c", 1): 0.0},
        pair: {("a", 0): 1.0, ("a", 1): 1.0, ("b", 0): 1.0, ("b", 1): 0.0, ("c", 0): 1.0, ("c", 1): 0.0},
    }
    category = {"a": "one", "b": "one", "c": "two"}
    parts = {
        condition: {(prompt, seed): {category[prompt]: (value, 1.0)} for (prompt, seed), value in values.items()}
        for condition, values in right.items()
    }
    scores, groups = {"geneval": right}, dict.fromkeys("abc", "file")
    breakdown = Breakdown(parts, ("one", "two", "three"), True)
    first, second = compute_figures(scores, groups, {"geneval": breakdown})
    assert list(second.groups) == ["one", "two"]
    # a: 1, b: 0.5, so 0.75 ± 0.25; c alone has no error.
    assert (second.groups["one"].mean, second.groups["one"].standard_error) == pytest.approx((0.75, 0.25))
    assert (second.groups["two"].mean, second.groups["two"].prompts) == (0.5, 1)
    assert math.isnan(second.groups["two"].standard_error)
    # (0.75 + 0.5) / 2, and not the 4 of 6 pictures.
    assert (second.mean.mean, second.mean.prompts, second.mean.pictures) == (0.625, 3, 6)
    assert first.mean.mean == 0.125
    assert second.difference.mean == 0.5
    # Of each prompt's two pictures one is better and one the same.
    assert second.wins.mean == 0.75
    (_, plain) = compute_figures(scores, groups, {"geneval": replace(breakdown, mean_of_categories=False)})
    assert plain.mean.mean == pytest.approx(4 / 6)


def test_a_ratio_weighs_prompts_by_what_they_ask():
    # 3 of 4 and 1 of 6 are 0.4, where the mean of shares is 0.46; deviations 3 − 1.6 and 1 − 2.4: √(2 · 2 · 1.4²) / 10.
    found = ratio({("a", 0): (1, 2), ("a", 1): (2, 2), ("b", 0): (1, 6)})
    assert (found.mean, found.standard_error) == pytest.approx((0.4, 2.8 / 10))
    assert (found.prompts, found.pictures) == (2, 3)
    # Where all ask the same it is the mean over prompts.
    values = {("a", 0): 1.0, ("a", 1): 0.0, ("b", 0): 1.0, ("b", 1): 1.0, ("c", 0): 0.0, ("c", 1): 0.0}
    same, plain = ratio({key: (value, 1.0) for key, value in values.items()}), estimate(values)
    assert (same.mean, same.standard_error) == pytest.approx((plain.mean, plain.standard_error))
    with pytest.raises(ValueError, match="nothing was asked"):
        ratio({})
    # Independent errors of 0.3 and 0.4: √(0.09 + 0.16) / 2.
    both = mean_of([Estimate(0.2, 0.3, 5, 10), Estimate(0.4, 0.4, 7, 14)])
    assert (both.mean, both.standard_error, both.prompts, both.pictures) == pytest.approx((0.3, 0.25, 12, 24))
