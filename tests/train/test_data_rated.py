"""The trainer reads a data set that was drawn and rated in ComfyUI as it is."""

import json

import pytest
from pictures import png
from rated import draw, ids, vote

from chats.taste.names import TasteError
from chats_train import cli
from chats_train.support.errors import UserError


@pytest.fixture
def dataset(tmp_path):
    return draw(tmp_path / "chats" / "my taste", fox=3, boat=2)


def pairs(opened):
    return [(sample.prompt, sample.chosen.read(), sample.rejected.read()) for sample in opened.samples]


def test_its_pairs_are_what_people_decided(open_pairs, dataset):
    first, second, third = ids(dataset, "fox")
    vote(dataset, first, second)
    vote(dataset, second, third, "right")
    vote(dataset, first, third, "tie")
    vote(dataset, *ids(dataset, "boat"), "skip")
    pictures = {name: (dataset.folder / "images" / f"{name}.png").read_bytes() for name in (first, second, third)}
    opened = open_pairs(dataset.folder)
    assert sorted(pairs(opened)) == sorted(
        [("fox", pictures[first], pictures[second]), ("fox", pictures[third], pictures[second])]
    )
    assert opened.problems == ()
    assert opened.remarks == (
        "5 candidates for 2 prompts, 4 pairs rated: 2 decided, 1 tied or rated both ways, 1 skipped",
    )


def test_what_was_derived_before_is_never_taken_for_the_ratings(open_pairs, dataset):
    """A line that another process added, an undo, and a file that somebody removed."""
    left, right, third = ids(dataset, "fox")
    rating = vote(dataset, left, right)
    assert dataset.derive() == 1
    row = {"rating": "f" * 16, "left": third, "right": left, "choice": "left", "rater": "other", "time": 1.0}
    with (dataset.folder / "ratings.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")
    assert len(open_pairs(dataset.folder).samples) == 2
    assert len((dataset.folder / "metadata.jsonl").read_text().splitlines()) == 2
    dataset.undo(rating, "default")
    assert pairs(open_pairs(dataset.folder)) == [
        ("fox", *((dataset.folder / "images" / f"{name}.png").read_bytes() for name in (third, left)))
    ]
    (dataset.folder / "metadata.jsonl").unlink()
    assert len(open_pairs(dataset.folder).samples) == 1


def test_what_else_lies_in_the_folder_is_no_data(open_pairs, dataset):
    vote(dataset, *ids(dataset, "boat"))
    dataset.write_guideline("rather quiet pictures")
    (dataset.folder / "runs" / "first" / "chosen").mkdir(parents=True)
    (dataset.folder / "runs" / "first" / "chosen" / "a.png").write_bytes(png(99))
    (dataset.folder / "scores.jsonl").write_text("{}\n")
    said = "5 candidates for 2 prompts, 1 pair rated: 1 decided, 0 tied or rated both ways, 0 skipped"
    assert open_pairs(dataset.folder).remarks == (said,)


def test_a_torn_line_and_a_removed_picture_are_said(open_pairs, dataset):
    first, second, third = ids(dataset, "fox")
    vote(dataset, first, second)
    vote(dataset, first, third)
    (dataset.folder / "images" / f"{third}.png").unlink()
    with (dataset.folder / "ratings.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"rating": "12')
    opened = open_pairs(dataset.folder)
    assert len(opened.samples) == 1
    assert opened.remarks == (
        "4 candidates for 2 prompts, 1 pair rated: 1 decided, 0 tied or rated both ways, 0 skipped",
        "lines of ratings.jsonl that are cut off or foreign, and are skipped: 1",
        "pictures of candidates.jsonl that are not in images/: 1",
    )


def test_ratings_that_decide_nothing_are_a_sentence(open_pairs, dataset):
    with pytest.raises(
        UserError, match=r"make no pair yet \(5 candidates for 2 prompts, none rated\); .* or let a scorer rate \("
    ):
        open_pairs(dataset.folder)
    vote(dataset, *ids(dataset, "fox")[:2], "tie")
    vote(dataset, *ids(dataset, "boat"), "left", "one")
    vote(dataset, *ids(dataset, "boat"), "right", "other")
    vote(dataset, *ids(dataset, "fox")[1:], "skip")
    with pytest.raises(UserError, match="3 pairs rated: 0 decided, 2 tied or rated both ways, 1 skipped"):
        open_pairs(dataset.folder)


@pytest.mark.parametrize("part", ["images", "metadata.jsonl", "candidates.jsonl", "ratings.jsonl"])
def test_a_part_of_a_data_set_names_the_whole(open_pairs, dataset, part):
    vote(dataset, *ids(dataset, "boat"))
    dataset.derive()
    with pytest.raises(UserError) as refused:
        open_pairs(dataset.folder / part)
    expected = f"which is a part of the rated data set {dataset.folder}; set it to that"
    assert str(refused.value) == f"`data.path` is {dataset.folder / part}, {expected}"


def test_the_folder_of_all_data_sets_names_them(open_pairs, dataset):
    draw(dataset.folder.with_name("another"), fox=1)
    chats = dataset.folder.parent
    (chats / "empty").mkdir()
    with pytest.raises(UserError) as refused:
        open_pairs(chats)
    expected = f"whose folders are rated data sets; set it to one: {chats / 'another'}, {dataset.folder}"
    assert str(refused.value) == f"`data.path` is {chats}, {expected}"
    for number in range(5):
        draw(chats / f"more {number}", fox=1)
    with pytest.raises(UserError, match=r"more 3 and 2 more$"):
        open_pairs(chats)


def test_somebodys_own_metadata_is_left_alone(open_pairs, dataset):
    vote(dataset, *ids(dataset, "boat"))
    own = json.dumps({"chosen_file_name": "a.png", "rejected_file_name": "b.png", "prompt": "mine"}) + "\n"
    (dataset.folder / "metadata.jsonl").write_text(own)
    with pytest.raises(TasteError, match="is left as it is; move it elsewhere"):
        open_pairs(dataset.folder)
    assert (dataset.folder / "metadata.jsonl").read_text() == own


def test_a_folder_that_cannot_be_written_is_read_where_nothing_is_stale(open_pairs, dataset):
    vote(dataset, *ids(dataset, "boat"))
    dataset.derive()
    lock = dataset.folder / ".metadata.jsonl.lock"
    lock.unlink(missing_ok=True)
    lock.mkdir()  # what root, as whom tests may run, cannot open either
    assert len(open_pairs(dataset.folder).samples) == 1
    vote(dataset, *ids(dataset, "fox")[:2])
    with pytest.raises(TasteError, match="allow writing"):
        open_pairs(dataset.folder)


def test_check_takes_the_folder_as_it_is(bases, dataset, tmp_path, capsys):
    run = {"version": 1, "family": "sd15", "output_dir": str(tmp_path / "run"), "pretrained_model": str(bases("sd15"))}
    run |= {"data": {"path": str(dataset.folder)}, "resolution": 64, "bucket_reso_steps": 16, "mixed_precision": "no"}
    (tmp_path / "run.yaml").write_text(json.dumps(run))
    assert cli.main(["check", str(tmp_path / "run.yaml")]) == 2
    assert "error: `data.path` is" in capsys.readouterr().err
    vote(dataset, *ids(dataset, "boat"))
    vote(dataset, *ids(dataset, "fox")[:2])
    assert cli.main(["check", str(tmp_path / "run.yaml")]) == 0
    said = capsys.readouterr().out
    assert "data: my taste: 2 pairs" in said
    assert "5 candidates for 2 prompts, 2 pairs rated: 2 decided" in said
