"""Pairs in folders as people's machines and tools leave them."""

import json
import os

import pytest
from pairs_on_disk import PAIRS, contents, kinds, prompts, report, write_rows
from pictures import encoded, picture, png, write_folders

from chats_train.support.errors import UserError


def row_of(name):
    """A line of metadata.jsonl on a pair in chosen/ and rejected/."""
    return {
        "chosen_file_name": f"chosen/{name}.png",
        "rejected_file_name": f"rejected/{name}.png",
        "prompt": f"prompt {name}",
    }


def test_two_folders(open_pairs, tmp_path):
    dataset = open_pairs(write_folders(tmp_path / "pairs"))
    assert contents(dataset) == PAIRS
    assert dataset.problems == ()
    # Of the sizes with about 64² pixels in steps of 8, 80 × 48 (1.67) is nearer to 48 × 32 (1.5) than 72 × 56 (1.29)
    # is.
    assert [sample.bucket for sample in dataset.samples] == [(80, 48)] * 2


def test_two_folders_with_captions_elsewhere_and_other_suffixes(open_pairs, tmp_path):
    folder = write_folders(tmp_path / "pairs", ("a.v2", "b"))
    (folder / "chosen" / "a.v2.txt").rename(folder / "rejected" / "a.v2.txt")
    (folder / "chosen" / "b.txt").rename(folder / "b.txt")
    (folder / "rejected" / "b.png").write_bytes(encoded(picture(7), "JPEG"))
    (folder / "rejected" / "b.png").rename(folder / "rejected" / "b.JPG")
    assert [sample.prompt for sample in open_pairs(folder).samples] == ["prompt a.v2", "prompt b"]


def test_metadata_folder_and_its_keys(open_pairs, tmp_path):
    folder = write_folders(tmp_path / "pairs")
    rows = [row_of(name) for name in "ab"]
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n\n", encoding="utf-8")
    dataset = open_pairs(folder)
    assert contents(dataset) == PAIRS
    renamed = [
        {"win": row["chosen_file_name"], "lose": row["rejected_file_name"], "text": row["prompt"]} for row in rows
    ]
    write_rows(folder, *renamed)
    with pytest.raises(
        UserError, match=r"no key `chosen_file_name`, only win, lose, text; set `data\.columns\.chosen`"
    ):
        open_pairs(folder)
    again = open_pairs(folder, {"columns": {"chosen": "win", "rejected": "lose", "prompt": "text"}})
    assert again.fingerprint == dataset.fingerprint


def test_metadata_that_is_no_json_names_its_line(open_pairs, tmp_path):
    folder = write_folders(tmp_path / "pairs")
    (folder / "metadata.jsonl").write_text("{}\n{nonsense\n", encoding="utf-8")
    with pytest.raises(UserError, match=r"line 2 of .* is not JSON"):
        open_pairs(folder)


# Names.

COMPOSED, DECOMPOSED = "caf\u00e9", "cafe\u0301"


def test_every_suffix_that_pillow_reads_in_any_case(open_pairs, tmp_path):
    folder = write_folders(tmp_path / "pairs", "abcdef")
    forms = [("JFIF", "JPEG"), ("jpe", "JPEG"), ("APNG", "PNG"), ("tga", "TGA"), ("ppm", "PPM"), ("Jp2", "JPEG2000")]
    for name, (suffix, kind) in zip("abcdef", forms, strict=True):
        (folder / "chosen" / f"{name}.png").unlink()
        (folder / "chosen" / f"{name}.{suffix}").write_bytes(encoded(picture(ord(name)), kind))
    dataset = open_pairs(folder)
    assert prompts(dataset) == [f"prompt {name}" for name in "abcdef"]
    assert (dataset.problems, dataset.remarks) == ((), ())


def test_what_is_no_picture_by_its_name_is_counted_and_named(open_pairs, tmp_path):
    folder = write_folders(tmp_path / "pairs")
    for name in ("chosen/c.heic", "rejected/c.heic", "chosen/scan.pdf", "chosen/film.mpg", "chosen/d.eps"):
        (folder / name).write_bytes(b"something")
    (folder / "chosen" / "c.txt").write_text("a caption")
    (folder / "other").mkdir()
    (folder / "other" / "e.png").write_bytes(png(5))
    dataset = open_pairs(folder)
    assert (contents(dataset), dataset.problems) == (PAIRS, ())
    assert dataset.remarks == (
        "left out (files that are no pictures by their names): 5, such as chosen/c.heic",
        "left out (files outside of chosen/ and rejected/): 1, such as other/e.png",
        "left out (captions of no pair): 1, such as chosen/c.txt",
    )
    assert f"  {dataset.remarks[0]}" in dataset.report()


def test_what_was_left_out_is_said_where_nothing_is_left(open_pairs, tmp_path):
    folder = write_folders(tmp_path / "pairs", "a")
    for side in ("chosen", "rejected"):
        (folder / side / "a.png").rename(folder / side / "a.heic")
    with pytest.raises(UserError, match=r"no usable pair, left out .*: 2, such as chosen/a\.heic; see"):
        open_pairs(folder)


def test_folders_below(open_pairs, tmp_path):
    """Equal names in two folders are two pairs; a caption is that of its folder."""
    folder = tmp_path / "pairs"
    for below, names in (("x", "a"), ("y/z", "ab")):
        one = write_folders(tmp_path / "one", names)
        for side in ("chosen", "rejected"):
            (folder / side / below).parent.mkdir(parents=True, exist_ok=True)
            (one / side).rename(folder / side / below)
    (folder / "chosen" / "x" / "a.txt").write_text("prompt x")
    (folder / "chosen" / "y" / "z" / "b.txt").rename(folder / "rejected" / "y" / "z" / "b.txt")
    (folder / "chosen" / "y" / "z" / "a.txt").unlink()
    (folder / "y" / "z").mkdir(parents=True)
    (folder / "y" / "z" / "a.txt").write_text("prompt y")
    dataset = open_pairs(folder)
    assert [(sample.name, sample.prompt) for sample in dataset.samples] == [
        ("x/a", "prompt x"),
        ("y/z/a", "prompt y"),
        ("y/z/b", "prompt b"),
    ]
    assert (dataset.problems, dataset.remarks) == ((), ())


def test_a_linked_folder_is_read_and_a_loop_has_an_end(open_pairs, tmp_path):
    folder, elsewhere = write_folders(tmp_path / "pairs"), write_folders(tmp_path / "elsewhere", "c")
    for side in ("chosen", "rejected"):
        (folder / side / "more").symlink_to(elsewhere / side)
    (folder / "chosen" / "again").symlink_to(folder / "chosen")
    dataset = open_pairs(folder)
    assert prompts(dataset) == ["prompt a", "prompt b", "prompt c"]
    assert dataset.remarks == ("left out (folders that were read under another name): 1, such as chosen/again",)


def test_a_folder_goes_by_its_own_name_and_not_by_a_link_s(open_pairs, tmp_path):
    folder = tmp_path / "pairs"
    for side in ("chosen", "rejected"):
        (folder / side).mkdir(parents=True)
        (write_folders(tmp_path / "one", "a") / side).rename(folder / side / "x")
    (folder / "chosen" / "a link").symlink_to(folder / "chosen" / "x")
    assert [sample.name for sample in open_pairs(folder).samples] == ["x/a"]


def test_a_folder_that_cannot_be_read_is_said(open_pairs, tmp_path, monkeypatch):
    folder = write_folders(tmp_path / "pairs")
    (folder / "chosen" / "x").mkdir()
    scan = os.scandir

    def refuse(place):
        if os.path.basename(place) == "x":
            raise PermissionError(13, "Permission denied", place)
        return scan(place)

    monkeypatch.setattr(os, "scandir", refuse)
    assert open_pairs(folder).remarks == (
        f"left out (folders that cannot be read): 1, such as {folder / 'chosen' / 'x'}",
    )


def test_composed_and_decomposed_names_are_the_same(open_pairs, tmp_path):
    """In folders: images, captions, folders. A Mac's file system and zip archives decompose."""
    folder = tmp_path / "pairs"
    for side, form in (("chosen", COMPOSED), ("rejected", DECOMPOSED)):
        (folder / side / form).mkdir(parents=True)
        (folder / side / form / f"{form}.png").write_bytes(png(0 if side == "chosen" else 100))
    (folder / "chosen" / COMPOSED / f"{DECOMPOSED}.txt").write_text("prompt a")
    dataset = open_pairs(folder)
    assert contents(dataset) == PAIRS[:1]
    assert (dataset.problems, dataset.remarks) == ((), ())
    (folder / "chosen" / COMPOSED / f"{DECOMPOSED}.png").write_bytes(png(0))
    assert kinds(open_pairs(folder)) == ["duplicate"]


def test_hidden_files_of_a_system_are_no_data(open_pairs, tmp_path):
    folder = write_folders(tmp_path / "pairs")
    for side in ("chosen", "rejected"):
        for name in ("._a.png", ".DS_Store", "Thumbs.db", "desktop.ini"):
            (folder / side / name).write_bytes(b"something")
        for below in ("__MACOSX", "@eaDir", ".ipynb_checkpoints"):
            (folder / side / below).mkdir()
            (folder / side / below / "c.png").write_bytes(png(7))
    (folder / "chosen" / "._a.txt").write_bytes(b"\x00\x05\x16\x07")
    dataset = open_pairs(folder)
    assert (contents(dataset), dataset.problems) == (PAIRS, ())
    (remark,) = dataset.remarks
    assert remark.startswith("left out (hidden files of a system): 15, such as chosen/")


def test_a_run_s_own_folder_is_no_data(open_pairs, tmp_path):
    """Where it lies in the data's; the first look at the data makes it."""
    folder = write_folders(tmp_path, "ab")
    open_pairs(folder)
    assert (tmp_path / "run" / "cache").is_dir()
    assert open_pairs(folder).remarks == ()


# metadata.jsonl.


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32"])
def test_metadata_is_read_by_its_byte_order_mark(encoding, open_pairs, tmp_path):
    folder = write_rows(write_folders(tmp_path / "pairs"), *map(row_of, "ab"))
    path = folder / "metadata.jsonl"
    path.write_bytes(path.read_text().replace("\n", "\r\n").encode(encoding))
    assert contents(open_pairs(folder)) == PAIRS
    path.write_bytes("{}".encode("utf-16-le"))
    with pytest.raises(UserError, match="is not text in UTF-8; save it as such"):
        open_pairs(folder)


def test_names_that_another_system_wrote(open_pairs, tmp_path):
    """With backslashes on Windows, decomposed on a Mac, and both."""
    folder = write_folders(tmp_path / "pairs")
    for side in ("chosen", "rejected"):
        (folder / side / "a.png").rename(folder / side / f"{COMPOSED}.png")
    rows = [
        {**row_of(DECOMPOSED), "chosen_file_name": f"chosen\\{DECOMPOSED}.png", "prompt": "prompt a"},
        {**row_of("b"), "rejected_file_name": ".\\rejected\\b.png"},
    ]
    for name in ("chosen/a.txt", "chosen/b.txt"):
        (folder / name).unlink()
    dataset = open_pairs(write_rows(folder, *rows))
    assert contents(dataset) == PAIRS
    assert (dataset.problems, dataset.remarks) == ((), ())


def test_a_missing_file_is_named_as_it_was_looked_for(open_pairs, tmp_path):
    folder = write_rows(write_folders(tmp_path / "pairs"), row_of("a"), {**row_of("b"), "chosen_file_name": "x\\y.png"})
    said = report(open_pairs(folder))
    assert (
        f"metadata.jsonl line 2: broken image (chosen: no file is there, looked for {folder / 'x' / 'y.png'})" in said
    )


def test_a_key_that_no_line_has_is_named_once(open_pairs, tmp_path):
    folder = write_folders(tmp_path / "pairs")
    rows = [{key: value for key, value in row_of(name).items() if key != "prompt"} for name in "ab"]
    write_rows(folder, *({**row, "text": "prompt"} for row in rows))
    message = r"no key `prompt`, only chosen_file_name, rejected_file_name, text; set `data\.columns\.prompt` .*`text`"
    with pytest.raises(UserError, match=message):
        open_pairs(folder)
    assert prompts(open_pairs(folder, {"columns": {"prompt": "text"}})) == ["prompt", "prompt"]
    write_rows(folder, rows[0], row_of("b"))
    assert kinds(open_pairs(folder)) == ["missing caption"], "where others have it, the row is listed"


def test_a_list_of_one_stands_for_it(open_pairs, tmp_path):
    folder = write_folders(tmp_path / "pairs")
    one = {key: [value] for key, value in row_of("a").items()}
    dataset = open_pairs(write_rows(folder, one, {**row_of("b"), "prompt": ["one", "two"]}))
    assert contents(dataset) == PAIRS[:1]
    assert "line 2: missing caption (no text but ['one', 'two'])" in report(dataset)


def test_files_that_no_line_names_are_counted(open_pairs, tmp_path):
    folder = write_folders(tmp_path / "pairs")
    rows = [row_of("a"), {**row_of("b"), "chosen_file_name": str(folder / "chosen" / "b.png")}]
    assert open_pairs(write_rows(folder, *rows)).remarks == (
        "left out (files that no line of metadata.jsonl names): 2, such as chosen/a.txt",
    )
