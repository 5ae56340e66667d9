"""Pairs in parquet: what cells hold, columns under any name, files of several schemas and splits."""

import base64

import datasets
import pytest
from pairs_on_disk import PAIRS, contents, prompts, report, structs, write_parquet
from pictures import png, write_folders

from chats_train.support.errors import UserError


def test_parquet_with_structs_images_bytes_and_paths(open_pairs, tmp_path):
    texts = ["prompt a", "prompt b"]
    rows = {"chosen": structs(0, 1), "rejected": structs(100, 101), "prompt": texts}
    plain = open_pairs(write_parquet(tmp_path / "structs" / "data.parquet", rows))
    assert contents(plain) == PAIRS
    features = datasets.Features(chosen=datasets.Image(), rejected=datasets.Image(), prompt=datasets.Value("string"))
    datasets.Dataset.from_dict(rows, features=features).to_parquet(tmp_path / "images" / "data.parquet")
    images = open_pairs(tmp_path / "images")
    raw = {"chosen": [png(0), png(1)], "rejected": [png(100), png(101)], "prompt": texts}
    as_bytes = open_pairs(write_parquet(tmp_path / "bytes" / "data.parquet", raw))
    folder = write_folders(tmp_path / "paths")
    named = {
        "chosen": ["chosen/a.png", "chosen/b.png"],
        "rejected": ["rejected/a.png", "rejected/b.png"],
        "prompt": texts,
    }
    as_paths = open_pairs(write_parquet(folder / "data.parquet", named).rename(folder / "d.parquet"))
    assert {plain.fingerprint, images.fingerprint, as_bytes.fingerprint, as_paths.fingerprint} == {plain.fingerprint}
    assert [sample.id for sample in plain.samples] == [sample.id for sample in images.samples]


def test_parquet_that_was_overwritten_is_read_anew(open_pairs, tmp_path):
    path = tmp_path / "pairs" / "data.parquet"
    first = open_pairs(write_parquet(path, {"chosen": structs(0), "rejected": structs(1), "prompt": ["a"]}))
    second = open_pairs(write_parquet(path, {"chosen": structs(2), "rejected": structs(3), "prompt": ["b"]}))
    assert [sample.prompt for sample in second.samples] == ["b"]
    assert first.fingerprint != second.fingerprint


def test_column_map_and_unknown_columns(open_pairs, tmp_path):
    rows = {"good": structs(0), "bad": structs(100), "captions": ["prompt a"]}
    path = write_parquet(tmp_path / "pairs" / "data.parquet", rows)
    dataset = open_pairs(path, {"columns": {"chosen": "good", "rejected": "bad", "prompt": "captions"}})
    assert contents(dataset) == PAIRS[:1]
    with pytest.raises(UserError, match=r"no column `chosen`, only good, bad, captions; set `data\.columns\.chosen`"):
        open_pairs(path)
    with pytest.raises(UserError, match=r"no column `caption`, only .*\(`captions`\?\)"):
        open_pairs(path, {"columns": {"chosen": "good", "rejected": "bad", "prompt": "caption"}})


def test_pick_a_pic_drops_ties_and_turns_pairs_round(open_pairs, tmp_path):
    rows = {
        "jpg_0": [png(0), png(101), png(5), png(6)],
        "jpg_1": [png(100), png(1), png(6), png(7)],
        "label_0": [1.0, 0.0, 0.5, None],
        "label_1": [0.0, 1.0, 0.5, None],
        "caption": ["prompt a", "prompt b", "tie", "no label"],
    }
    dataset = open_pairs(write_parquet(tmp_path / "pap" / "data.parquet", rows))
    assert contents(dataset) == PAIRS
    assert (dataset.ties, dataset.problems) == (2, ())
    assert "2 ties left out" in dataset.report()[0]


# Cells.


def test_base64_of_a_picture_is_one(open_pairs, tmp_path):
    """Also as a data URL, for the web, in lines, in a struct; a broken one says so."""
    plain = base64.b64encode(png(0)).decode()
    lines = base64.encodebytes(png(0)).decode()
    forms = [plain, lines, f"data:image/png;base64,{plain}", base64.urlsafe_b64encode(png(0)).decode().rstrip("=")]
    rows = {"chosen": [*forms, plain[:400]], "rejected": [png(seed) for seed in range(1, 6)], "prompt": ["p"] * 5}
    dataset = open_pairs(write_parquet(tmp_path / "pairs" / "data.parquet", rows))
    assert [sample.chosen.read() for sample in dataset.samples] == [png(0)] * 4
    assert "row 4: broken image (chosen: " in report(dataset)
    assert "no file is there" not in report(dataset)
    struct = {"chosen": [{"bytes": plain, "path": None}], "rejected": [[png(1)]], "prompt": ["p"]}
    assert contents(open_pairs(write_parquet(tmp_path / "structs" / "data.parquet", struct))) == [("p", png(0), png(1))]


def test_names_in_cells_that_another_system_wrote(open_pairs, tmp_path):
    """And the path that was looked for where there is none, also where the name would be Base64, but of no picture."""
    folder = write_folders(tmp_path / "pairs")
    (folder / "chosen" / "a.png").rename(folder / "chosen" / "caf\u00e9.png")
    rows = {
        "chosen": ["chosen\\cafe\u0301.png", "chosen/abcd"],
        "rejected": ["rejected\\a.png", "rejected/b.png"],
        "prompt": ["prompt a", "prompt b"],
    }
    dataset = open_pairs(write_parquet(folder / "data.parquet", rows))
    assert contents(dataset) == PAIRS[:1]
    assert f"(chosen: no file is there, looked for {folder / 'chosen' / 'abcd'})" in report(dataset)


def test_a_list_of_one_text_is_the_prompt(open_pairs, tmp_path):
    rows = {"chosen": structs(0, 1), "rejected": structs(2, 3), "prompt": [["one"], ["two", "more"]]}
    dataset = open_pairs(write_parquet(tmp_path / "pairs" / "data.parquet", rows))
    assert prompts(dataset) == ["one"]
    assert "row 1: missing caption (no text but ['two', 'more'])" in report(dataset)


# Columns.


@pytest.mark.parametrize(
    ("setting", "names"),
    [
        ("chosen", ("image_chosen", "image_rejected", "text")),
        ("rejected", ("chosen", "loser", "caption")),
        ("prompt", ("chosen", "rejected", "Text")),
    ],
)
def test_a_column_under_another_name_is_suggested(setting, names, open_pairs, tmp_path):
    cells = (structs(0, 1), structs(2, 3), ["p", "q"])
    path = write_parquet(tmp_path / "pairs" / "data.parquet", dict(zip(names, cells, strict=True)))
    name = names[("chosen", "rejected", "prompt").index(setting)]
    message = rf"no column `{setting}`, only {', '.join(names)}; set `data\.columns\.{setting}` .*\(`{name}`\?\)"
    with pytest.raises(UserError, match=message):
        open_pairs(path)


# Files of one set.


def test_files_with_more_columns_than_others(open_pairs, tmp_path):
    """In any order, and of other types; rows are counted on."""
    folder = tmp_path / "pairs"
    rows = {"chosen": structs(0), "rejected": structs(100), "prompt": ["prompt a"]}
    more = {"score": [0.5], "prompt": ["prompt b"], "rejected": [png(101)], "chosen": [png(1)]}
    write_parquet(folder / "1.parquet", rows)
    write_parquet(folder / "2.parquet", more)
    write_parquet(folder / "3.parquet", {**rows, "prompt": [""]})
    dataset = open_pairs(folder)
    assert contents(dataset) == PAIRS
    assert [sample.name for sample in dataset.samples] == ["row 0", "row 1"]
    assert "row 2: missing caption" in report(dataset)
    write_parquet(folder / "3.parquet", {**rows, "chosen": ["nowhere.png"]})
    assert str(open_pairs(folder).problems[0]).startswith("row 2: broken image")


def test_a_file_without_prompts_is_listed_and_one_without_images_is_refused(open_pairs, tmp_path):
    folder = tmp_path / "pairs"
    rows = {"chosen": structs(0), "rejected": structs(100), "prompt": ["prompt a"]}
    write_parquet(folder / "1.parquet", rows)
    write_parquet(folder / "2.parquet", {"chosen": structs(1), "rejected": structs(101)})
    dataset = open_pairs(folder)
    assert contents(dataset) == PAIRS[:1]
    assert "row 1: missing caption (no text)" in report(dataset)
    write_parquet(folder / "2.parquet", {"chosen": structs(1), "prompt": ["prompt b"]})
    message = r"2\.parquet has no column `rejected`, which other files of `data\.path` have, only chosen, prompt; write"
    with pytest.raises(UserError, match=message):
        open_pairs(folder)


def test_a_file_that_is_not_whole_is_named(open_pairs, tmp_path):
    folder = tmp_path / "pairs"
    write_parquet(folder / "1.parquet", {"chosen": structs(0), "rejected": structs(100), "prompt": ["prompt a"]})
    (folder / "2.parquet").write_bytes((folder / "1.parquet").read_bytes()[:-9])
    with pytest.raises(UserError, match=r"pairs/2\.parquet is not whole parquet \(.*\); write it again"):
        open_pairs(folder)


def test_files_beside_the_tables(open_pairs, tmp_path):
    """Hidden ones are no tables, others are counted; a folder's name may have brackets, and a suffix capitals."""
    folder = tmp_path / "pairs [v2]"
    path = write_parquet(folder / "a.PARQUET", {"chosen": structs(0), "rejected": structs(100), "prompt": ["prompt a"]})
    (folder / "._a.parquet").write_bytes(b"\x00\x05\x16\x07")
    (folder / "README.md").write_text("a data set")
    dataset = open_pairs(folder)
    assert contents(dataset) == contents(open_pairs(path)) == PAIRS[:1]
    assert dataset.remarks == (
        "left out (hidden files of a system): 1, such as ._a.parquet",
        "left out (files that are no parquet): 1, such as README.md",
    )


# Splits.


@pytest.fixture
def write_splits(tmp_path):
    def write_splits(*names):
        """Files of one pair each, whose prompt is the file's name."""
        for seed, name in enumerate(names):
            rows = {"chosen": structs(seed), "rejected": structs(seed + 100), "prompt": [name]}
            write_parquet(tmp_path / "pairs" / f"{name}.parquet", rows)
        return tmp_path / "pairs"

    return write_splits


PARTS = ("test-00000-of-00001", "train-00000-of-00002-0123abcd", "train-00001-of-00002", "validation-00000-of-00001")


@pytest.mark.parametrize(
    ("names", "split", "read"),
    [
        (PARTS, "train", PARTS[1:3]),
        (PARTS, "val", PARTS[3:]),
        (PARTS, "test+validation", (PARTS[0], PARTS[3])),
        (PARTS, "all", PARTS),
        (("data/train/0000", "data/test/0000", "data/dev/0000"), "train", ("data/train/0000",)),
        (("data/train/0000", "data/test/0000", "data/dev/0000"), "validation", ("data/dev/0000",)),
        (("pairs_test", "pairs_training"), "train", ("pairs_training",)),
        (("more", "train-00000-of-00001", "test-00000-of-00001"), "train", ("more", "train-00000-of-00001")),
        # A model's name, an order's word, and both in one name state none.
        (("flux-dev", "latest", "train_test"), "train", ("flux-dev", "latest", "train_test")),
        (("part-00000-of-00002", "part-00001-of-00002"), "train", ("part-00000-of-00002", "part-00001-of-00002")),
        (("good-00000-of-00001", "rest-00000-of-00001"), "good", ("good-00000-of-00001",)),
    ],
)
def test_a_split_is_read_where_names_state_theirs(names, split, read, open_pairs, write_splits):
    dataset = open_pairs(write_splits(*names), {"split": split})
    assert sorted(prompts(dataset)) == sorted(read)
    assert sum("read: " in remark for remark in dataset.remarks) == 1
    assert sum("left out" in remark for remark in dataset.remarks) == (len(read) < len(names))


def test_what_was_read_of_the_splits_is_said(open_pairs, write_splits):
    folder = write_splits("more", *PARTS)
    assert open_pairs(folder).remarks == (
        "read: 3 of 5 files, for the split train; 1 of them state none, such as more.parquet",
        "left out (files of other splits than train): 2, such as test-00000-of-00001.parquet",
    )
    # A file that is named by itself is read.
    (remark,) = open_pairs(folder / f"{PARTS[0]}.parquet").remarks
    assert remark == "read: test-00000-of-00001.parquet, by its name of the split test"
    for name in ("more", *PARTS[1:3]):
        (folder / f"{name}.parquet").unlink()
    message = r"`data\.split` is train, and the files are of test, validation; set it to one of these, or to all"
    with pytest.raises(UserError, match=message):
        open_pairs(folder)
    with pytest.raises(UserError, match=r"`data\.split` is train\[:9\]; slices are .*`data\.max_pairs`"):
        open_pairs(folder, {"split": "train[:9]"})


def test_files_that_state_no_split_are_all_read_and_it_is_said(open_pairs, write_splits):
    assert open_pairs(write_splits("a", "b")).remarks == ("read: all 2 files, as none states a split by its name",)
