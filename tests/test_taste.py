"""A rated data set: what a vote changes, what follows from the votes, and what is refused."""

import json
import random

import pytest
from taste_sets import RATER, answer_all, drawn, ids, rating

from chats.taste.dataset import TasteDataset
from chats.taste.names import Conflict, NotThere, TasteError, check_name
from chats.taste.records import Vote
from chats.taste.tally import verdict


def lines(folder, name):
    return [json.loads(line) for line in (folder / name).read_text(encoding="utf-8").splitlines()]


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "my taste"


@pytest.mark.parametrize("name", ["a", "my taste", "A-1_b", "9", "x" * 64, "con fetti", "com10", "nul-1"])
def test_names_that_are_kept(name):
    assert check_name(name) == name


@pytest.mark.parametrize(
    "name",
    [
        *("", " a", "a ", "a.b", ".", "..", "../a", "a/b", "a\\b", "a\0", "a\n", "x" * 65, "ä", "٣", "-a", "_a", "a:b"),
        *("con", "CON", "Nul", "com1", "LPT9", "aux", "prn"),
    ],
)
def test_names_that_are_refused(name):
    with pytest.raises(TasteError, match=r"^`name` is `.*choose "):
        check_name(name, "name")


def test_a_candidate_is_named_by_its_bytes_and_belongs_to_one_prompt(folder):
    one = TasteDataset(folder)
    name, new = one.add_candidate(b"abc", "a cat\nat noon", [7, 8], ["m.safetensors"], 64, 48)
    assert (name, new) == ("ba7816bf8f01cfea", True)  # the SHA-256 of "abc" is a test vector of FIPS 180
    assert (folder / "images" / f"{name}.png").read_bytes() == b"abc"
    assert one.add_candidate(b"abc", "a cat\nat noon") == (name, False)
    with pytest.raises(Conflict, match="another prompt"):
        one.add_candidate(b"abc", "a dog")
    (line,) = lines(folder, "candidates.jsonl")
    assert line.pop("time") > 1.7e9
    assert line == {
        "id": name,
        "prompt": "a cat\nat noon",
        "seeds": [7, 8],
        "models": ["m.safetensors"],
        "width": 64,
        "height": 48,
    }


def test_a_damaged_picture_is_written_anew_when_it_is_drawn_again(folder):
    one = TasteDataset(folder)
    name, _ = one.add_candidate(b"abc", "a cat")
    (folder / "images" / f"{name}.png").write_bytes(b"")
    assert one.add_candidate(b"abc", "a cat") == (name, False)
    assert (folder / "images" / f"{name}.png").read_bytes() == b"abc"


@pytest.mark.parametrize("prompt", ["", " \n", "\ud800", "x" * 20_001])
def test_prompts_that_are_refused(folder, prompt):
    with pytest.raises(TasteError, match="`prompt`"):
        TasteDataset(folder).add_candidate(b"abc", prompt)
    assert not folder.exists()


def test_a_vote_is_one_line_however_often_it_is_sent(folder):
    one = drawn(folder, 2)
    left, right = ids(one)
    for _ in range(3):
        assert one.vote(rating(1), left, right, "left", RATER, 1.23456)
    (line,) = lines(folder, "ratings.jsonl")
    assert line.pop("time") > 1.7e9
    assert line == {
        "rating": rating(1),
        "left": left,
        "right": right,
        "choice": "left",
        "rater": RATER,
        "seconds": 1.235,
        "repeat": False,
    }
    with pytest.raises(Conflict, match="another answer"):
        one.vote(rating(1), left, right, "right", RATER)


def test_a_window_that_was_left_open_counts_as_an_hour(folder):
    one = drawn(folder, 2)
    assert one.vote(rating(1), *ids(one), "left", RATER, 90_000.5)
    assert [vote.seconds for vote in one.votes()] == [3600.0]


def test_the_first_answer_to_a_pair_stands(folder):
    one = drawn(folder, 2)
    left, right = ids(one)
    assert one.vote(rating(1), left, right, "left", RATER)
    assert not one.vote(rating(2), right, left, "left", RATER)
    assert one.vote(rating(3), left, right, "right", "another")
    assert one.vote(rating(4), right, left, "right", RATER, repeat=True)
    assert not one.vote(rating(5), right, left, "right", RATER, repeat=True)
    assert [vote.rating for vote in one.votes()] == [rating(1), rating(3), rating(4)]


def test_a_repeat_of_what_was_never_answered_is_the_first_answer(folder):
    one = drawn(folder, 2)
    assert one.vote(rating(1), *ids(one), "left", RATER, repeat=True)
    assert [vote.repeat for vote in one.votes()] == [False]


def test_undo_takes_back_one_s_own_vote_once(folder):
    one = drawn(folder, 2)
    left, right = ids(one)
    one.vote(rating(1), right, left, "left", RATER)
    assert one.last(RATER) == rating(1)
    with pytest.raises(NotThere):
        one.undo(rating(1), "another")
    with pytest.raises(NotThere):
        one.undo(rating(2), RATER)
    shown = one.undo(rating(1), RATER)
    assert (shown.left, shown.right, shown.prompt, shown.repeat) == (right, left, "prompt 0", False)
    assert one.undo(rating(1), RATER) == shown
    assert len(lines(folder, "ratings.jsonl")) == 2
    assert one.last(RATER) is None
    assert one.progress(RATER) == {"rated": 0, "waiting": 1, "pairs": 0, "agreement": [0, 0]}
    # The same key press, sent again late, does not come back; a new one counts.
    assert not one.vote(rating(1), right, left, "left", RATER)
    assert one.vote(rating(2), left, right, "left", RATER)


def test_taking_back_the_first_of_two_answers_leaves_the_other(folder):
    one = drawn(folder, 2)
    left, right = ids(one)
    one.vote(rating(1), left, right, "left", RATER)
    one.vote(rating(2), right, left, "left", RATER, repeat=True)
    assert one.pairs() == []  # one for each
    one.undo(rating(1), RATER)
    assert one.pairs() == [(right, left, "prompt 0")]
    assert one.progress(RATER) == {"rated": 1, "waiting": 0, "pairs": 1, "agreement": [0, 0]}
    one.undo(rating(2), RATER)
    assert one.progress(RATER) == {"rated": 0, "waiting": 1, "pairs": 0, "agreement": [0, 0]}


@pytest.mark.parametrize(
    "change",
    [
        {"rating": "xyz"},
        {"rating": rating(1).upper().replace("0", "A")},
        {"left": "../../etc/passwd"},
        {"choice": "both"},
        {"choice": None},
        {"seconds": float("nan")},
        {"seconds": float("inf")},
        {"seconds": -1},
        {"seconds": 10**400},
        {"seconds": "1"},
        {"rater": ""},
    ],
    ids=str,
)
def test_votes_that_are_refused(folder, change):
    one = drawn(folder, 2)
    left, right = ids(one)
    vote = {"rating": rating(1), "left": left, "right": right, "choice": "left", "rater": RATER, **change}
    with pytest.raises(TasteError):
        one.vote(**vote)
    assert not (folder / "ratings.jsonl").exists()


def test_votes_on_what_is_no_pair_are_refused(folder):
    one = drawn(folder, 1, 1)
    (one_id,), (other_id,) = ids(one, 0), ids(one, 1)
    with pytest.raises(TasteError, match="two prompts"):
        one.vote(rating(1), one_id, other_id, "left", RATER)
    with pytest.raises(NotThere, match=rating(5)):
        one.vote(rating(1), one_id, rating(5), "left", RATER)
    with pytest.raises(TasteError):
        one.vote(rating(1), one_id, one_id, "left", RATER)


def votes_of(*choices: str) -> list[Vote]:
    """Votes on the pair a, b: `a`, `b`, `tie` or `skip`, with an `s` before it by a scorer."""
    made = []
    for number, choice in enumerate(choices):
        scorer = choice in ("sa", "sb", "stie")
        side = {"a": "left", "b": "right"}.get(choice.removeprefix("s") if scorer else choice)
        rater = "scorer:x" if scorer else f"person {number}"
        made.append(Vote(rating(number), "a", "b", side or ("tie" if "tie" in choice else "skip"), rater))
    return made


@pytest.mark.parametrize(
    ("choices", "chosen"),
    [
        (["a"], "a"),
        (["b"], "b"),
        (["tie"], None),
        (["skip"], None),
        (["a", "b"], None),
        (["a", "a", "b"], "a"),
        (["a", "tie"], None),
        (["a", "a", "tie"], "a"),
        (["a", "skip", "skip"], "a"),
        (["sa"], "a"),
        (["sa", "b"], "b"),
        (["sa", "sa", "sa", "b"], "b"),
        (["sa", "tie"], None),
        (["sa", "a", "b"], None),
        (["sa", "skip"], "a"),
        ([], None),
    ],
    ids=str,
)
def test_the_better_picture_of_a_pair(choices, chosen):
    assert verdict(votes_of(*choices)) == chosen


def test_the_pairs_are_derived_as_the_trainer_reads_them(folder):
    one = drawn(folder, 2, 2, 2)
    assert one.derive() == 0
    assert not (folder / "metadata.jsonl").exists()
    (a, b), (c, d), (e, f) = (ids(one, prompt) for prompt in range(3))
    one.vote(rating(1), a, b, "left", RATER)
    one.vote(rating(2), c, d, "right", RATER)
    one.vote(rating(3), e, f, "tie", RATER)
    assert one.stale
    assert one.derive() == 2
    assert not one.stale
    expected = [
        {"chosen_file_name": f"images/{a}.png", "rejected_file_name": f"images/{b}.png", "prompt": "prompt 0"},
        {"chosen_file_name": f"images/{d}.png", "rejected_file_name": f"images/{c}.png", "prompt": "prompt 1"},
    ]
    found = lines(folder, "metadata.jsonl")
    assert sorted(found, key=lambda line: line["prompt"]) == expected
    assert [list(line) for line in found] == [list(line) for line in expected]
    before = (folder / "metadata.jsonl").stat()
    assert one.derive() == TasteDataset(folder).derive() == 2
    assert (folder / "metadata.jsonl").stat().st_mtime_ns == before.st_mtime_ns  # nothing to say, nothing written
    one.undo(rating(1), RATER)
    one.undo(rating(2), RATER)
    assert one.derive() == 0
    assert (folder / "metadata.jsonl").read_bytes() == b""


def test_what_is_derived_depends_on_the_votes_in_force_alone(folder):
    """In a process that saw them come and in one that reads them later, whatever was taken back in between."""
    one = drawn(folder, 4, 7, 3)
    coin = random.Random(1)
    answer_all(one, lambda shown: coin.choice(("left", "right", "tie")))
    for vote in coin.sample(one.votes(), 8):
        one.undo(vote.rating, RATER)
        if coin.random() < 0.5:
            one.vote(f"{coin.getrandbits(64):016x}", vote.left, vote.right, vote.choice, RATER)
    one.derive()
    seen = (folder / "metadata.jsonl").read_bytes()
    (folder / "metadata.jsonl").unlink()
    other = TasteDataset(folder)
    assert (other.votes(), other.progress(RATER)) == (one.votes(), one.progress(RATER))
    other.derive()
    assert (folder / "metadata.jsonl").read_bytes() == seen


@pytest.mark.parametrize(
    "content",
    [
        b'{"chosen_file_name": "a.png", "rejected_file_name": "b.png", "prompt": "mine"}\n',
        b'{"file_name": "images/a.png"}\n',
        b"not JSON\n",
        b"[" * 100_000,
    ],
    ids=["other pictures", "other keys", "text", "deep"],
)
def test_a_metadata_file_of_somebody_s_own_is_left_alone(folder, content):
    one = drawn(folder, 2)
    one.vote(rating(1), *ids(one), "left", RATER)
    (folder / "metadata.jsonl").write_bytes(content)
    with pytest.raises(Conflict, match=r"metadata\.jsonl has lines that come from no rating"):
        one.derive()
    assert (folder / "metadata.jsonl").read_bytes() == content


def test_a_derived_file_that_was_changed_or_cut_is_derived_anew(folder):
    one = drawn(folder, 2, 2)
    for prompt in range(2):
        one.vote(rating(prompt), *ids(one, prompt), "left", RATER)
    one.derive()
    whole = (folder / "metadata.jsonl").read_bytes()
    (folder / "metadata.jsonl").write_bytes(whole.splitlines(keepends=True)[0])
    one.derive()
    assert (folder / "metadata.jsonl").read_bytes() == whole
    (folder / "metadata.jsonl").unlink()
    one.derive()
    assert (folder / "metadata.jsonl").read_bytes() == whole


def test_the_guideline_is_kept_as_text(folder):
    one = drawn(folder, 1)
    assert one.guideline() == ""
    assert one.write_guideline("  看手 and faces\n") == one.guideline() == "看手 and faces"
    assert one.write_guideline("ä" * 500) == one.guideline()
    for text in ("x" * 501, "\ud800"):
        with pytest.raises(TasteError, match="`guideline`"):
            one.write_guideline(text)
    (folder / "guideline.txt").write_bytes(b"\xff\xfe" + b"x" * 10_000_000)
    assert len(one.guideline()) <= 500


def test_many_votes_are_kept_in_one_write_or_none(folder):
    one = drawn(folder, 2, 2)
    made = [Vote(rating(prompt), *ids(one, prompt), "left", "scorer:x") for prompt in range(2)]
    with pytest.raises(NotThere):
        one.vote_all([*made, Vote(rating(9), rating(8), rating(7), "left", "scorer:x")])
    assert one.votes() == []
    twice = Vote(rating(5), *ids(one, 0), "right", "scorer:x")
    assert one.vote_all([*made, twice, made[0]]) == [True, True, False, True]
    assert one.vote_all(made) == [True, True]
    assert len(lines(folder, "ratings.jsonl")) == 2


def test_files_of_other_kinds_are_left_alone(folder):
    one = drawn(folder, 2)
    for name in ("notes.txt", ".hidden.tmp", "images/mine.jpg", "images/.mine.tmp"):
        (folder / name).write_text("mine")
    one = TasteDataset(folder)
    one.vote(rating(1), *ids(one), "left", RATER)
    one.derive()
    for name in ("notes.txt", ".hidden.tmp", "images/mine.jpg", "images/.mine.tmp"):
        assert (folder / name).read_text() == "mine"
