"""`rate`: scorers as raters of a data set that ComfyUI drew, with a tiny random CLIP scorer."""

import itertools
import math

import pytest
import torch
from PIL import Image
from rated import draw, ids, vote

from chats.locks import locked
from chats.taste.dataset import TasteDataset
from chats.taste.records import Vote, pair_of
from chats_train import cli
from chats_train.evaluation.prompts import EvaluationPrompt
from chats_train.evaluation.scorers import ClipScorer, open_scorers
from chats_train.rating.agreement import agreement, agreement_text
from chats_train.rating.comparisons import choice, comparisons
from chats_train.rating.rate import LOCK
from chats_train.support.jsonl import read_rows

RATER = "scorer:pickscore"


@pytest.fixture
def dataset(tmp_path):
    return draw(tmp_path / "chats" / "my taste", fox=4, boat=2, alone=1)


def rate(dataset, clip, *arguments, kind="pickscore"):
    return cli.main(["rate", str(dataset.folder), "--scorer", f"{kind}={clip}", *map(str, arguments)])


def scores_of(dataset, clip):
    """By candidate, asked of the scorer one by one."""
    (scorer,) = open_scorers([f"pickscore={clip}"], "cpu")
    found = {}
    for name, candidate in dataset.candidates().items():
        with Image.open(dataset.folder / "images" / f"{name}.png") as picture:
            found[name] = float(scorer.score([picture.convert("RGB")], [EvaluationPrompt(candidate.prompt, "")]))
    return found


def own(dataset, rater=RATER):
    """A rater's votes in force, read anew from the disk: the better picture by pair."""
    votes = [vote for vote in TasteDataset(dataset.folder).votes() if vote.rater == rater]
    assert len({vote.pair for vote in votes}) == len(votes)
    return {vote.pair: vote.chosen for vote in votes}


def expected(dataset, scores, margin):
    """What the scores say of every two pictures of a prompt."""
    pairs = [pair_of(*two) for prompt in ("fox", "boat") for two in itertools.combinations(ids(dataset, prompt), 2)]
    return {
        pair: None if abs(scores[pair[0]] - scores[pair[1]]) < margin else max(pair, key=scores.get) for pair in pairs
    }


def test_all_pairs_of_few_are_rated_by_their_scores(dataset, clip, capsys):
    scores = scores_of(dataset, clip)
    assert rate(dataset, clip) == 0
    assert own(dataset) == expected(dataset, scores, 0)
    assert len(own(dataset)) == 7  # six of four pictures, and one of two
    said = capsys.readouterr().out.splitlines()
    assert said[0] == "my taste: 7 candidates for 3 prompts"
    assert said[1].startswith("pickscore: 7 pairs, 7 decided and 0 ties (margin 0; half of the differences are below ")
    assert said[1].endswith("; 7 rated now, 0 otherwise than before, 0 as before")
    assert said[2] == "metadata.jsonl: 7 pairs to train on, people's ratings before scorers'"
    rows = read_rows(dataset.folder / "metadata.jsonl")
    pairs = {pair_of(*(row[key][7:-4] for key in ("chosen_file_name", "rejected_file_name"))) for row in rows}
    assert pairs == own(dataset).keys()


def test_a_margin_makes_ties_and_another_one_replaces_them(dataset, clip, capsys):
    scores = scores_of(dataset, clip)
    apart = sorted(abs(scores[one] - scores[other]) for one, other in expected(dataset, scores, 0))
    margin = (apart[2] + apart[3]) / 2  # three of seven are below it
    assert rate(dataset, clip, "--margin", margin) == 0
    assert own(dataset) == expected(dataset, scores, margin)
    assert "7 pairs, 4 decided and 3 ties" in capsys.readouterr().out
    lines = (dataset.folder / "ratings.jsonl").read_bytes()
    assert rate(dataset, clip, "--margin", margin) == 0
    assert (dataset.folder / "ratings.jsonl").read_bytes() == lines
    assert "; 0 rated now, 0 otherwise than before, 7 as before" in capsys.readouterr().out
    assert rate(dataset, clip) == 0
    assert own(dataset) == expected(dataset, scores, 0)
    assert "; 0 rated now, 3 otherwise than before, 4 as before" in capsys.readouterr().out
    assert (dataset.folder / "ratings.jsonl").read_bytes().startswith(lines)  # only ever appended to


def test_peoples_votes_stand_and_are_compared_with(dataset, clip, capsys):
    scores = scores_of(dataset, clip)
    best, *others = sorted(ids(dataset, "fox"), key=scores.get, reverse=True)
    vote(dataset, best, others[0], "left")
    vote(dataset, others[1], best, "left")  # not what the scorer says
    vote(dataset, *ids(dataset, "boat"), "tie")
    before = own(dataset, "default")
    assert rate(dataset, clip) == 0
    assert own(dataset, "default") == before
    chosen = {pair_of(chosen, rejected): chosen for chosen, rejected, _ in dataset.pairs()}
    assert chosen[pair_of(best, others[1])] == others[1]
    assert pair_of(*ids(dataset, "boat")) not in chosen  # a person called it a tie
    line = "pickscore and default: the same choice in 50.0 % (no error from one prompt) of 2 pairs that both decided"
    assert line in capsys.readouterr().out


def test_new_candidates_get_their_votes_later(dataset, clip, capsys):
    assert rate(dataset, clip) == 0
    draw(dataset.folder, boat=1)
    capsys.readouterr()
    assert rate(dataset, clip) == 0
    assert "9 pairs, 9 decided and 0 ties" in (said := capsys.readouterr().out)
    assert "; 2 rated now, 0 otherwise than before, 7 as before" in said


def test_a_stopped_scorer_goes_on(tmp_path, clip, capsys, monkeypatch):
    """Stopped between two batches, and as a kill leaves it: with half a line in the scores."""
    dataset = draw(tmp_path / "many", fox=5, boat=6, tree=3)
    real, asked = ClipScorer.score, []

    def score(self, images, prompts):
        if len(asked) == 1:
            raise KeyboardInterrupt
        asked.append(len(images))
        return real(self, images, prompts)

    monkeypatch.setattr(ClipScorer, "score", score)
    assert rate(dataset, clip) == cli.INTERRUPTED_STATUS
    assert own(dataset) == {}
    with (dataset.folder / "scores.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"key": "12')
    later = []
    monkeypatch.setattr(
        ClipScorer, "score", lambda self, images, prompts: later.append(len(images)) or real(self, images, prompts)
    )
    assert rate(dataset, clip) == 0
    assert (sum(asked), sum(later)) == (8, 6)
    assert len(own(dataset)) == 10 + 15 + 3


def test_two_scorers_with_a_margin_each(dataset, clip, capsys):
    arguments = ["rate", str(dataset.folder), "--scorer", f"pickscore={clip}", f"hpsv2={clip}"]
    assert cli.main([*arguments, "--margin", "0", "1e9"]) == 0
    assert None not in own(dataset).values()
    assert set(own(dataset, "scorer:hpsv2").values()) == {None}
    assert cli.main([*arguments, "--margin", "0"]) == 2
    assert "has 1 number for 2 scorers; give one for each in their order" in capsys.readouterr().err


@pytest.mark.parametrize("count", range(14))
def test_which_pairs_a_scorer_is_asked_for(count):
    pictures = [f"{number:016x}" for number in range(count)]
    pairs = list(comparisons(pictures))
    assert len(set(pairs)) == len(pairs) == (math.comb(count, 2) if count <= 9 else 4 * count)
    assert all(one < other for one, other in pairs)
    often = {picture: sum(picture in pair for pair in pairs) for picture in pictures}
    assert set(often.values()) <= {min(count - 1, 8)}
    assert set(comparisons(pictures[::-1])) == set(pairs)


def test_what_a_person_rated_beyond_them_is_rated_too(tmp_path, clip):
    dataset = draw(tmp_path / "many", fox=12)
    asked = set(comparisons(ids(dataset, "fox")))
    beyond = next(pair for pair in itertools.combinations(sorted(ids(dataset, "fox")), 2) if pair not in asked)
    vote(dataset, *beyond)
    assert rate(dataset, clip) == 0
    assert own(dataset).keys() == asked | {beyond}


def test_choices_by_hand():
    assert [choice(*pair, 0) for pair in ((1, 2), (2, 1), (1, 1))] == ["right", "left", "tie"]
    assert [choice(*pair, 1) for pair in ((1, 2), (2, 1.5), (1, 1))] == ["right", "tie", "tie"]


def votes_of(rater, *answers):
    return [Vote(f"{number:016x}", left, right, said, rater) for number, (left, right, said) in enumerate(answers)]


def test_agreement_by_hand():
    """Prompt p: two of two the same, q: one of two, r: none of one. The mean over prompts is (1 + .5 + 0) / 3; their
    standard deviation is .5, so the error is .5 / √3."""
    prompts = {name: name[0] for name in ("p1", "p2", "p3", "q1", "q2", "q3", "r1", "r2")}
    person = votes_of(
        "default",
        ("p1", "p2", "left"),
        ("p3", "p2", "right"),
        ("q1", "q2", "left"),
        ("q2", "q3", "left"),
        ("r1", "r2", "left"),
        ("p1", "p3", "tie"),
        ("q1", "q3", "left"),
        ("q3", "q1", "left"),  # asked again, and answered otherwise: it says nothing
    )
    scorer = votes_of(
        RATER,
        ("p2", "p1", "right"),
        ("p2", "p3", "left"),
        ("q1", "q2", "left"),
        ("q2", "q3", "right"),
        ("r1", "r2", "right"),
        ("p1", "p3", "left"),
        ("q1", "q3", "left"),
    )
    share, ties = agreement(scorer, person, prompts)
    assert (share.mean, share.pictures, share.prompts, ties) == (0.5, 5, 3, 0)
    assert share.standard_error == pytest.approx(0.5 / math.sqrt(3))
    assert agreement_text("hpsv2", "default", (share, ties)) == (
        "hpsv2 and default: the same choice in 50.0 % ± 28.9 of 5 pairs that both decided, each of 3 prompts weighing "
        "the same"
    )
    tied = votes_of(RATER, ("p1", "p2", "tie"), ("q1", "q2", "left"), ("r1", "r2", "left"))
    assert agreement_text("hpsv2", "default", agreement(tied, person, prompts)) == (
        "hpsv2 and default: the same choice in 100.0 % (no error where all are alike) of 2 pairs that both decided, "
        "each of 2 prompts weighing the same; of 1 more that default decided it says tie"
    )
    assert agreement_text("hpsv2", "default", agreement([], person, prompts)) == (
        "hpsv2 and default: no pair that both decided"
    )


def test_what_cannot_be_rated_is_a_sentence(dataset, clip, tmp_path, capsys):
    def refused(folder, *arguments, scorer=f"pickscore={clip}"):
        assert cli.main(["rate", str(folder), "--scorer", scorer, *arguments]) == 2
        said = capsys.readouterr().err
        assert "Traceback" not in said
        (line,) = (line for line in said.splitlines() if line.startswith("error: "))
        return line

    assert "has no candidates.jsonl; give the folder of a data set" in refused(tmp_path / "nowhere")
    assert "has no candidates.jsonl" in refused(dataset.folder / "candidates.jsonl")
    assert "1 candidate for 1 prompt and no two for one prompt; draw more" in refused(
        draw(tmp_path / "one", fox=1).folder
    )
    assert "`--margin` is -1.0; give 0 or more" in refused(dataset.folder, "--margin=-1")
    assert "`--margin` is nan" in refused(dataset.folder, "--margin", "nan")
    assert "did you mean pickscore" in refused(dataset.folder, scorer=f"pickscor={clip}")
    assert "is `pickscore=`, which names no weights; give pickscore=FOLDER" in refused(
        dataset.folder, scorer="pickscore="
    )
    assert "`--scorer` hpsv2 is `/nowhere/at/all`, which is" in refused(dataset.folder, scorer="hpsv2=/nowhere/at/all")
    with locked(dataset.folder / LOCK):
        assert "another scorer is at work now" in refused(dataset.folder)
    (picture, *_) = ids(dataset, "fox")
    (dataset.folder / "images" / f"{picture}.png").write_bytes(b"\x89PNG\r\n\x1a\n, and no more")
    assert f"{picture}.png cannot be read as a picture" in refused(dataset.folder)
    assert own(dataset) == {}


def test_a_removed_picture_is_left_out_and_said(dataset, clip, capsys):
    (picture, *_) = ids(dataset, "fox")
    vote(dataset, *ids(dataset, "fox")[:2])
    (dataset.folder / "images" / f"{picture}.png").unlink()
    assert rate(dataset, clip) == 0
    said = capsys.readouterr().out
    assert "note: pictures of candidates.jsonl that are not in images/: 1" in said
    assert "my taste: 6 candidates for 3 prompts" in said
    assert "pickscore and default: no pair that both decided" in said
    assert len(own(dataset)) == 3 + 1


def test_a_score_that_is_no_number_rates_nothing(dataset, clip, capsys, monkeypatch):
    monkeypatch.setattr(ClipScorer, "score", lambda self, images, prompts: torch.full((len(images),), math.nan))
    assert rate(dataset, clip) == 2
    assert "nan; look at the picture" in capsys.readouterr().err
    assert own(dataset) == {}
