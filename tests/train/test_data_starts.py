"""What a second start reads: files of another size or time alone, unless everything is asked for."""

import errno
import json
import os

import pytest
from pairs_on_disk import contents, kinds, report, structs, write_parquet
from pictures import encoded, picture, png, write_folders

from chats_train.data import records, take_over, verdicts
from chats_train.data.cells import TableImage
from chats_train.data.checks import check_pairs
from chats_train.data.listing import hand_over, handed_over
from chats_train.data.pairs import FileImage
from chats_train.data.records import RecordFiles
from chats_train.data.verdicts import Verdicts
from chats_train.settings.config_file import PLACEHOLDERS, parse_config
from chats_train.support.errors import UserError


@pytest.fixture
def old(monkeypatch):
    """Files of this test count as written long ago."""
    monkeypatch.setattr(verdicts, "SETTLED_NS", 0)


@pytest.fixture
def reads(monkeypatch):
    """The places that are read, in their order."""
    found = []
    for kind in (FileImage, TableImage):

        def read(image, original=kind.read):
            found.append(image.place)
            return original(image)

        monkeypatch.setattr(kind, "read", read)
    return found


def bitmap(seed):
    """Of one size in bytes, whatever it shows."""
    return encoded(picture(seed), "BMP")


def replaced(path, content):
    """The file with other bytes, whose number and time of modification stay."""
    before = path.stat()
    path.write_bytes(content)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert path.stat()[:7] == before[:7]


@pytest.fixture
def bitmaps(tmp_path):
    folder = write_folders(tmp_path / "pairs")
    for number, file in enumerate(sorted(folder.glob("*/*.png"))):
        file.write_bytes(bitmap(number))
    return folder


def test_a_second_start_reads_what_is_new_alone(old, reads, open_pairs, tmp_path):
    folder = write_folders(tmp_path / "pairs")
    first = open_pairs(folder)
    assert len(reads) == 4
    assert first.remarks == ()
    reads.clear()
    second = open_pairs(folder)
    assert (list(second.samples), second.fingerprint, reads) == (list(first.samples), first.fingerprint, [])
    assert second.remarks == (
        "not read again: 4 images in files whose size and times are those of an earlier start "
        "(`data.checksum: true` reads all)",
    )
    (folder / "chosen" / "a.png").write_bytes(png(7))
    (folder / "rejected" / "b.png").touch()
    third = open_pairs(folder)
    assert reads == [str(folder / "chosen" / "a.png"), str(folder / "rejected" / "b.png")]
    assert third.fingerprint != first.fingerprint
    assert contents(third)[0] == ("prompt a", png(7), png(100))
    assert "replaced" not in report(third)


def test_what_is_wrong_is_said_at_every_start(old, reads, open_pairs, tmp_path):
    folder = write_folders(tmp_path / "pairs", ("a", "cut", "film", "same", "reverse"))
    cut = folder / "chosen" / "cut.png"
    cut.write_bytes(cut.read_bytes()[:-900])
    frames = [picture(1), picture(2)]
    (folder / "rejected" / "film.png").write_bytes(
        encoded(frames[0], "GIF", save_all=True, append_images=frames[1:], duration=100)
    )
    (folder / "rejected" / "same.png").write_bytes((folder / "chosen" / "same.png").read_bytes())
    for side, other in (("chosen", "rejected"), ("rejected", "chosen")):
        (folder / side / "reverse.png").write_bytes((folder / other / "a.png").read_bytes())
    (folder / "chosen" / "reverse.txt").write_text("prompt a")
    with pytest.raises(Exception, match="no usable pair"):
        open_pairs(folder)
    (folder / "chosen" / "reverse.txt").write_text("prompt b")
    first = open_pairs(folder)
    assert kinds(first) == ["broken image", "same image", "several pictures"]
    reads.clear()
    second = open_pairs(folder)
    assert (second.problems, reads) == (first.problems, [])
    assert report(second).replace(second.remarks[0], "") == report(first).replace(first.remarks[0], "")


def test_a_file_just_written_is_not_trusted(reads, open_pairs, tmp_path):
    """It may be written once more at what its system calls the same time."""
    folder = write_folders(tmp_path / "pairs")
    open_pairs(folder)
    reads.clear()
    assert open_pairs(folder).remarks == ()
    assert len(reads) == 4


@pytest.mark.skipif(os.name == "nt", reason="Windows keeps no time of an entry's change")
def test_a_picture_replaced_with_its_size_and_time_is_read_and_said(old, reads, open_pairs, bitmaps):
    first = open_pairs(bitmaps)
    image = bitmaps / "chosen" / "a.png"
    replaced(image, bitmap(9))
    reads.clear()
    second = open_pairs(bitmaps)
    assert reads == [str(image)]
    assert second.fingerprint != first.fingerprint
    assert f"replaced by others of equal size and time of change: 1, such as {image}" in second.remarks


def test_checksum_reads_everything_and_says_what_was_replaced(old, reads, open_pairs, bitmaps, tmp_path):
    first = open_pairs(bitmaps)
    image = bitmaps / "chosen" / "a.png"
    replaced(image, bitmap(9))
    # As where a system does not tell that a file's entry changed.
    folder = tmp_path / "run" / "cache"
    files, key = RecordFiles(folder / verdicts.RECORDS), Verdicts(folder)._key(str(image))
    (record,) = files.at([key])
    size, modified_ns, _ = record.mark
    files.add([record._replace(mark=(size, modified_ns, image.stat().st_ctime_ns))])
    assert open_pairs(bitmaps).fingerprint == first.fingerprint, "what the option is for"
    reads.clear()
    anew = open_pairs(bitmaps, {"checksum": True})
    assert len(reads) == 4
    assert anew.fingerprint != first.fingerprint
    assert anew.remarks == (f"replaced by others of equal size and time of change: 1, such as {image}",)
    assert open_pairs(bitmaps).fingerprint == anew.fingerprint, "and it is remembered"


def test_a_table_s_images_are_known_by_its_file(old, reads, open_pairs, tmp_path):
    """File by file; of cells that name a file, by that one."""
    folder = tmp_path / "pairs"
    (folder / "named").mkdir(parents=True)
    (folder / "named" / "x.png").write_bytes(png(20))
    write_parquet(folder / "1.parquet", {"chosen": [png(0)], "rejected": [png(1)], "prompt": ["p"]})
    rows = {"chosen": structs(2, 3), "rejected": [*structs(4), {"bytes": None, "path": "named/x.png"}]}
    write_parquet(folder / "2.parquet", {**rows, "prompt": ["q", "r"]})
    first = open_pairs(folder)
    reads.clear()
    assert contents(open_pairs(folder))[2] == ("r", png(3), png(20))
    reads.clear()
    again = open_pairs(folder)
    assert (again.fingerprint, reads) == (first.fingerprint, [])
    write_parquet(folder / "1.parquet", {"chosen": [png(0)], "rejected": [png(9)], "prompt": ["p"]})
    open_pairs(folder)
    assert reads == ["0:0:chosen", "0:0:rejected"]
    (folder / "named" / "x.png").write_bytes(png(21))
    reads.clear()
    assert contents(open_pairs(folder))[2] == ("r", png(3), png(21))
    assert "1:1:rejected" in reads


def test_a_table_rewritten_with_its_time_is_copied_anew(old, open_pairs, tmp_path):
    """`datasets` knows its copy of a table by the file's name and time of modification."""
    path = write_parquet(tmp_path / "1.parquet", {"chosen": [png(0)], "rejected": [png(1)], "prompt": ["p"]})
    open_pairs(path)
    before = path.stat()
    write_parquet(path, {"chosen": [png(2)], "rejected": [png(3)], "prompt": ["q"]})
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert contents(open_pairs(path)) == [("q", png(2), png(3))]


def test_a_moved_image_is_hashed_but_not_decoded(open_pairs, tmp_path, monkeypatch):
    first = open_pairs(write_folders(tmp_path / "pairs"))
    (tmp_path / "pairs").rename(tmp_path / "moved")
    monkeypatch.setattr(verdicts, "decode", lambda _: pytest.fail("decoded twice"))
    assert open_pairs(tmp_path / "moved").fingerprint == first.fingerprint


def test_records_are_whole_or_not_there(old, reads, open_pairs, tmp_path):
    """Of another version, damaged, cut off: the images are read anew, and nothing stops."""
    folder = write_folders(tmp_path / "pairs")
    first = open_pairs(folder)
    (file,) = (tmp_path / "run" / "cache" / verdicts.RECORDS).glob("*")
    whole = file.read_bytes()
    for content in (b"", whole[:-30], whole.replace(b'"version":"3"', b'"version":"2"'), b"\0" * len(whole)):
        assert content != whole
        file.write_bytes(content)
        for other in (*file.parent.glob("*"), *(tmp_path / "run" / "cache" / "pairs").glob("*")):
            if other != file:
                other.unlink()
        reads.clear()
        assert open_pairs(folder).fingerprint == first.fingerprint
        assert len(reads) == 4


def test_many_files_of_records_become_one(old, reads, open_pairs, tmp_path, monkeypatch):
    """And what a kill leaves is not lost."""
    monkeypatch.setattr(records, "MOST_FILES", 2)
    monkeypatch.setattr(verdicts, "SAVED_IMAGES", 1)
    folder = write_folders(tmp_path / "pairs", ("a", "b", "c"))
    (folder / "chosen" / "b.png").write_bytes(b"no picture")
    first = open_pairs(folder)
    assert len(list((tmp_path / "run" / "cache" / verdicts.RECORDS).glob("*"))) == 1
    reads.clear()
    second = open_pairs(folder)
    assert (second.problems, second.fingerprint, reads) == (first.problems, first.fingerprint, [])


def test_an_unchanged_table_is_listed_without_asking_for_its_rows(old, reads, open_pairs, tmp_path, monkeypatch):
    """With the problems of before; any setting that pairs follow from makes another list, and `checksum` reads all."""
    rows = {"chosen": structs(5, 0, 1, 2), "rejected": structs(6, 1, 0, 2), "prompt": ["q", "p", "p", "p"]}
    path = write_parquet(tmp_path / "1.parquet", rows)
    first = open_pairs(path)
    with monkeypatch.context() as patch:
        patch.setattr("chats_train.data.dataset.check_pairs", lambda *_: pytest.fail("rows were asked for"))
        second = open_pairs(path)
    assert contents(second) == contents(first) == [("q", png(5), png(6))]
    assert kinds(second) == ["reversed pair", "reversed pair", "same image"]
    assert (second.problems, second.fingerprint) == (first.problems, first.fingerprint)
    assert second.remarks[-1].startswith("not read again: 8 images")
    assert [len(open_pairs(path, {"max_pairs": count}).problems) for count in (2, 3, 4)] == [0, 2, 3]
    reads.clear()
    assert open_pairs(path, {"checksum": True}).fingerprint == first.fingerprint
    assert len(reads) == 8
    for file in (tmp_path / "run" / "cache" / "pairs").glob("*"):
        file.write_bytes(file.read_bytes()[:-50])
    assert open_pairs(path).problems == first.problems, "a listing that is cut off is none"


def metadata(folder, *rows):
    lines = [
        json.dumps(dict(zip(("chosen_file_name", "rejected_file_name", "prompt"), row, strict=True))) for row in rows
    ]
    (folder / "metadata.jsonl").write_text("\n".join(lines))


@pytest.fixture
def unread(monkeypatch):
    """How many starts stated pairs one by one, a list that grows."""
    found = []

    def counted(source, *args):
        found.append(source.name)
        return check_pairs(source, *args)

    monkeypatch.setattr("chats_train.data.dataset.check_pairs", counted)
    return found


@pytest.mark.skipif(os.name == "nt", reason="Windows keeps no time of an entry's change")
@pytest.mark.parametrize("form", ["two folders", "metadata"])
def test_an_unchanged_folder_is_walked_and_no_more(form, old, reads, unread, open_pairs, bitmaps):
    """All is said as before; any file that is added, taken out or changed, in whatever its size and time of
    modification, makes the start look at the pairs."""
    caption = bitmaps / "chosen" / "a.txt"
    (bitmaps / "lonely.png").write_bytes(png(50))
    (bitmaps / "chosen" / "cut.png").write_bytes(png(51)[:-900])
    (bitmaps / "rejected" / "cut.png").write_bytes(png(52))
    if form == "metadata":
        rows = [(f"chosen/{name}.png", f"./rejected\\{name}.png", f"prompt {name}") for name in ("a", "b", "cut")]
        metadata(bitmaps, *rows)
        caption = bitmaps / "metadata.jsonl"
    else:
        (bitmaps / "chosen" / "cut.txt").write_text("prompt")
    first = open_pairs(bitmaps)
    again = open_pairs(bitmaps)
    assert unread == ["pairs"], "the second did not"
    assert (contents(again), again.problems, again.fingerprint) == (contents(first), first.problems, first.fingerprint)
    assert report(again).replace(again.remarks[-1], "").split() == report(first).split()
    assert kinds(first) == ["broken image"]

    def changed(count):
        unread.clear()
        found = open_pairs(bitmaps)
        assert len(unread) == 1
        assert len(found.samples) == count
        open_pairs(bitmaps)
        assert len(unread) == 1
        return found

    replaced(bitmaps / "chosen" / "a.png", bitmap(9))
    assert changed(2).fingerprint != first.fingerprint
    replaced(caption, caption.read_bytes().replace(b"prompt a", b"Prompt A"))
    assert "Prompt A" in {sample.prompt for sample in changed(2).samples}
    (bitmaps / "chosen" / "cut.png").write_bytes(png(51))
    before = changed(3)
    (bitmaps / "more.png").write_bytes(b"")
    assert changed(3).remarks[0] != before.remarks[0], "it has one more that was left out"
    (bitmaps / "rejected" / "b.png").rename(bitmaps / "gone.png")
    if form == "metadata":
        metadata(bitmaps, rows[0], rows[2])
    changed(2)
    reads.clear()
    assert len(open_pairs(bitmaps, {"checksum": True}).samples) == 2
    assert len(reads) >= 4


def test_what_a_walk_does_not_tell_is_looked_at_again(old, unread, open_pairs, tmp_path):
    """Files just written, files elsewhere, files that are missing or cannot be read."""
    folder = write_folders(tmp_path / "pairs")
    (tmp_path / "elsewhere.png").write_bytes(png(60))
    for name in ("../elsewhere.png", str(tmp_path / "elsewhere.png"), ".hidden/x.png", "missing.png"):
        metadata(folder, ("chosen/a.png", "rejected/a.png", "p"), ("chosen/b.png", name, "q"))
        unread.clear()
        open_pairs(folder)
        open_pairs(folder)
        assert len(unread) == 2, name
    (folder / ".hidden").mkdir()
    (folder / ".hidden" / "x.png").write_bytes(png(61))
    metadata(folder, ("chosen/a.png", "rejected/a.png", "p"), ("chosen/b.png", ".hidden/x.png", "q"))
    assert len(open_pairs(folder).samples) == 2
    (folder / ".hidden" / "x.png").write_bytes(png(62))
    assert contents(open_pairs(folder))[1] == ("q", png(1), png(62))
    (folder / "metadata.jsonl").unlink()
    os.symlink(tmp_path / "nothing.png", folder / "chosen" / "c.png")
    (folder / "rejected" / "c.png").write_bytes(png(63))
    (folder / "chosen" / "c.txt").write_text("prompt c")
    unread.clear()
    open_pairs(folder)
    (tmp_path / "nothing.png").write_bytes(png(64))
    assert len(open_pairs(folder).samples) == 3
    assert len(unread) == 2


@pytest.mark.parametrize("failing", ["chats_train.data.pairs.Path.read_bytes", "chats_train.data.captions.read_text"])
def test_what_a_disk_failed_to_give_is_asked_for_again(failing, old, open_pairs, tmp_path, monkeypatch):
    folder = write_folders(tmp_path / "pairs")

    def fail(path, *_):
        raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))

    with monkeypatch.context() as patch:
        patch.setattr(failing, fail)
        with pytest.raises(UserError, match="no usable pair"):
            open_pairs(folder)
    assert len(open_pairs(folder).samples) == 2


def test_a_folder_just_written_is_looked_at_again(unread, open_pairs, tmp_path):
    folder = write_folders(tmp_path / "pairs")
    open_pairs(folder)
    open_pairs(folder)
    assert len(unread) == 2


@pytest.mark.parametrize("form", ["folder", "table"])
def test_other_processes_take_the_pairs_of_the_first(form, open_pairs, tmp_path):
    """Without looking for themselves; of a table they open the file when an image is wanted."""
    if form == "folder":
        path = write_folders(tmp_path / "pairs")
    else:
        path = write_parquet(tmp_path / "1.parquet", {"chosen": structs(0), "rejected": structs(1), "prompt": ["p"]})
    opened = open_pairs(path)
    raw = {"version": 1, "family": "sd15", **PLACEHOLDERS, "output_dir": str(tmp_path / "run")}
    config = parse_config({**raw, "data": {"path": str(path)}})
    file = handed_over(tmp_path, 7)
    assert take_over(file, config) is None
    hand_over(opened.samples, opened.name, file)
    if form == "folder":
        (path / "chosen" / "a.txt").unlink()
    taken = take_over(file, config)
    file.unlink()
    assert (taken.name, taken.fingerprint, contents(taken)) == (opened.name, opened.fingerprint, contents(opened))
    assert [sample.bucket for sample in taken.samples] == [sample.bucket for sample in opened.samples]
