"""What is said about pairs that cannot be used, and what a pair is. Files are real ones, written by each test."""

import pytest
from pairs_on_disk import kinds, report, structs, write_parquet
from pictures import encoded, picture, png, write_folders
from PIL import Image

from chats_train.support.errors import UserError


@pytest.fixture
def damaged(tmp_path):
    """Six pairs: a good one, a cut-off image, no image at all, no caption, sizes that differ, a copy; and one image
    alone."""
    folder = write_folders(tmp_path / "pairs", ("a", "cut", "text", "silent", "sizes", "z"))
    cut = folder / "chosen" / "cut.png"
    cut.write_bytes(cut.read_bytes()[:-900])
    (folder / "rejected" / "text.png").write_text("not an image")
    (folder / "chosen" / "silent.txt").write_text(" \n")
    (folder / "rejected" / "sizes.png").write_bytes(png(9, 32, 48))
    for side, suffix in (("chosen", "png"), ("rejected", "png"), ("chosen", "txt")):
        (folder / side / f"z.{suffix}").write_bytes((folder / side / f"a.{suffix}").read_bytes())
    (folder / "rejected" / "alone.png").write_bytes(png(10))
    return folder


def test_problems_are_counted_and_listed(open_pairs, damaged):
    dataset = open_pairs(damaged)
    assert [sample.name for sample in dataset.samples] == ["a", "sizes"]
    assert kinds(dataset) == [
        "broken image",
        "broken image",
        "duplicate",
        "missing caption",
        "no partner",
        "size mismatch",
    ]
    said = report(dataset)
    assert "broken image: 2" in said
    assert "text: broken image (rejected: not an image)" in said
    assert "cut: broken image (chosen: " in said
    assert "sizes: size mismatch (chosen 48 × 32, rejected 32 × 48)" in said
    assert "rejected/alone.png: no partner (no chosen/alone)" in said
    # The bucket of 48 × 32 and 32 × 48 together is square.
    assert dataset.samples[1].bucket == (64, 64)


def test_strict_stops_at_problems(open_pairs, damaged):
    with pytest.raises(UserError, match=r"6 problems, the first is .*set `data\.strict: false`"):
        open_pairs(damaged, {"strict": True})
    for name in ("alone", "cut", "text", "silent", "sizes", "z"):
        for file in damaged.glob(f"*/{name}.*"):
            file.unlink()
    assert len(open_pairs(damaged, {"strict": True}).samples) == 1


def test_no_usable_pair_and_no_pairs_at_all(open_pairs, tmp_path):
    folder = write_folders(tmp_path / "pairs", ("a",))
    (folder / "chosen" / "a.txt").unlink()
    with pytest.raises(
        UserError, match=r"no usable pair, the first problem is a: missing caption.*, in all missing caption: 1"
    ):
        open_pairs(folder)
    with pytest.raises(UserError, match="which is not there"):
        open_pairs(tmp_path / "nowhere")
    with pytest.raises(
        UserError, match=r"which has none of metadata\.jsonl, chosen/ and rejected/, or \.parquet files"
    ):
        open_pairs(tmp_path)
    (tmp_path / "torn.parquet").write_bytes(b"PAR1torn")
    with pytest.raises(UserError, match="not whole parquet"):
        open_pairs(tmp_path / "torn.parquet")


def test_ids_follow_contents_only(open_pairs, tmp_path):
    here, there = write_folders(tmp_path / "here"), write_folders(tmp_path / "there", ("b", "a"))
    for name, prompt in (
        ("b", "prompt a"),
        ("a", "prompt b"),
    ):  # the same pairs under exchanged names, so in another order
        (there / "chosen" / f"{name}.txt").write_text(prompt)
    first, second = open_pairs(here), open_pairs(there)
    assert [sample.id for sample in first.samples] == [sample.id for sample in reversed(second.samples)]
    assert first.fingerprint == second.fingerprint
    (here / "chosen" / "a.txt").write_text("another prompt")
    assert open_pairs(here).fingerprint != first.fingerprint


def test_max_pairs(open_pairs, tmp_path):
    assert len(open_pairs(write_folders(tmp_path / "pairs"), {"max_pairs": 1}).samples) == 1


def test_small_images_are_mentioned(open_pairs, tmp_path):
    assert any(
        "2 pairs have an image smaller than its bucket" in line
        for line in open_pairs(write_folders(tmp_path / "pairs")).report()
    )
    large = open_pairs(write_folders(tmp_path / "large", size=(96, 64)))
    assert not any("smaller" in line for line in large.report())


def test_exif_orientation_counts(open_pairs, tmp_path):
    folder = write_folders(tmp_path / "pairs", ("a",))
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    (folder / "chosen" / "a.png").write_bytes(encoded(picture(0), "PNG", exif=exif))
    (sample,) = open_pairs(folder).samples
    assert (sample.chosen.width, sample.chosen.height) == (32, 48)


# The same twice.


def write_sides(folder, **pairs):
    """chosen/ and rejected/ by name: (seed of the chosen image, seed of the rejected one, prompt)."""
    for name, (chosen, rejected, prompt) in pairs.items():
        for side, seed in (("chosen", chosen), ("rejected", rejected)):
            (folder / side).mkdir(parents=True, exist_ok=True)
            (folder / side / f"{name}.png").write_bytes(png(seed))
        (folder / "chosen" / f"{name}.txt").write_text(prompt)
    return folder


def test_the_same_image_on_both_sides_is_no_preference(open_pairs, tmp_path):
    dataset = open_pairs(write_sides(tmp_path / "pairs", a=(0, 0, "p"), b=(0, 1, "p")))
    assert [sample.name for sample in dataset.samples] == ["b"]
    assert "a: same image (chosen and rejected are the same file)" in report(dataset)


def test_a_pair_and_its_reverse_are_no_preference(open_pairs, tmp_path):
    """Whichever comes first and however often; under another prompt the reverse is no contradiction."""
    pairs = dict(a=(0, 1, "p"), b=(2, 3, "p"), c=(1, 0, "p"), d=(0, 1, "p"), e=(1, 0, "q"))
    dataset = open_pairs(write_sides(tmp_path / "pairs", **pairs))
    assert [sample.name for sample in dataset.samples] == ["b", "e"]
    assert kinds(dataset) == ["duplicate", "reversed pair", "reversed pair"]
    assert "a: reversed pair (c prefers the other image)" in report(dataset)
    assert "c: reversed pair (a prefers the other image)" in report(dataset)
    with pytest.raises(UserError, match=r"`data\.strict` is true and pairs has 3 problems"):
        open_pairs(tmp_path / "pairs", {"strict": True})


def test_near_duplicates_are_counted_and_trained_on(open_pairs, tmp_path):
    pairs = dict(a=(0, 1, "p"), b=(0, 2, "p"), c=(0, 1, "q"), d=(1, 0, "r"), e=(4, 2, "p"), f=(5, 6, "p"))
    dataset = open_pairs(write_sides(tmp_path / "pairs", **pairs))
    assert (len(dataset.samples), dataset.problems) == (6, ())
    said = report(dataset)
    assert "near-duplicates (both images, under another prompt of an earlier pair): 2" in said, "a, c and d"
    assert "near-duplicates (prompt and chosen image of an earlier pair): 1" in said, "a and b"
    assert "near-duplicates (prompt and rejected image of an earlier pair): 1" in said, "b and e"
    assert "near-duplicates" not in report(open_pairs(write_sides(tmp_path / "two", a=(0, 1, "p"), b=(2, 3, "q"))))


def test_a_table_s_pair_and_its_reverse(open_pairs, tmp_path):
    rows = {"chosen": structs(0, 1, 2, 3), "rejected": structs(1, 0, 2, 4), "prompt": ["p", "p", "p", "p"]}
    dataset = open_pairs(write_parquet(tmp_path / "pairs" / "data.parquet", rows))
    assert [sample.name for sample in dataset.samples] == ["row 3"]
    assert kinds(dataset) == ["reversed pair", "reversed pair", "same image"]
