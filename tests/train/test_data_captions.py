"""Captions as people's editors and tools write them."""

import pytest
from pairs_on_disk import kinds, prompts, report
from pictures import write_folders


@pytest.mark.parametrize(
    "encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-be-mark", "utf-32", "utf-32-be-mark"], ids=str
)
def test_a_caption_is_read_by_its_byte_order_mark(encoding, open_pairs, tmp_path):
    folder, text = write_folders(tmp_path / "pairs", "a"), "a cat’s café,\r\nred"
    written = text.encode(encoding.removesuffix("-mark"))
    if encoding.endswith("-mark"):
        written = "\ufeff".encode(encoding.removesuffix("-mark")) + written
    (folder / "chosen" / "a.txt").write_bytes(written)
    assert prompts(open_pairs(folder)) == ["a cat’s café,\nred"]


@pytest.mark.parametrize(
    "written",
    ["café".encode("cp1252"), "黑猫".encode("gb18030"), "a cat".encode("utf-16-le"), "a cat".encode("utf-16")[:-1]],
    ids=["Windows", "Chinese", "without a mark", "cut off"],
)
def test_a_caption_that_is_no_text_is_listed(written, open_pairs, tmp_path):
    folder = write_folders(tmp_path / "pairs")
    (folder / "chosen" / "a.txt").write_bytes(written)
    dataset = open_pairs(folder)
    assert prompts(dataset) == ["prompt b"]
    assert "a: unreadable caption (chosen/a.txt is not text in UTF-8; save it as such)" in report(dataset)


def test_captions_as_tools_write_them(open_pairs, tmp_path):
    """The first of name.txt, name.caption, name.png.txt and name.png.caption, beside the chosen image first."""
    folder = write_folders(tmp_path / "pairs", "abcd")
    order = ["chosen/a.TXT", "chosen/a.caption", "chosen/a.png.txt", "chosen/a.png.caption"]
    order += [name.replace("chosen", "rejected") for name in order] + ["a.txt", "a.caption", "a.png.txt"]
    (folder / "chosen" / "a.txt").unlink()
    for name in order:
        (folder / name).write_text(f"in {name}")
    for name in order:
        dataset = open_pairs(folder)
        assert prompts(dataset)[0] == f"in {name}"
        left = len(order) - 1 - order.index(name)
        assert [remark.split(", such as")[0] for remark in dataset.remarks] == [
            f"left out (captions that differ from the one that was taken): {left}" for _ in range(min(left, 1))
        ]
        (folder / name).unlink()
    assert kinds(open_pairs(folder)) == ["missing caption"]


def test_the_same_caption_beside_both_images_is_nothing_to_say(open_pairs, tmp_path):
    folder = write_folders(tmp_path / "pairs", "a")
    (folder / "rejected" / "a.txt").write_text("prompt a")
    assert open_pairs(folder).remarks == ()
