"""Where pairs come from and what is said about those that cannot be used. Files are real ones, written by each test."""

import http.server
import json
import os
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import ClassVar

import datasets
import pyarrow
import pytest
from pictures import encoded, picture, png, write_folders
from PIL import Image
from pyarrow import parquet

from chats_train.data import open_dataset
from chats_train.data.dataset import VERDICTS_FILE
from chats_train.settings.config_file import PLACEHOLDERS, parse_config
from chats_train.support.errors import UserError


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    def refuse(*_):
        raise AssertionError("nothing is fetched unless the user names a hub id")

    monkeypatch.setattr(socket.socket, "connect", refuse)


@pytest.fixture
def open_pairs(tmp_path):
    def open_pairs(path, data=None):
        raw = {"version": 1, "family": "sd15", **PLACEHOLDERS, "resolution": 64, "bucket_reso_steps": 8}
        raw |= {"output_dir": str(tmp_path / "run"), "data": {"path": str(path), **(data or {})}}
        return open_dataset(parse_config(raw), progress=False)

    return open_pairs


def write_parquet(path, rows, **columns):
    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(pyarrow.table(rows, **columns), path)
    return path


def structs(*seeds):
    return [{"bytes": png(seed), "path": None} for seed in seeds]


def kinds(dataset):
    return sorted(problem.kind for problem in dataset.problems)


def contents(dataset):
    """What a data set is, wherever it lies."""
    return [(sample.prompt, sample.chosen.read(), sample.rejected.read()) for sample in dataset.samples]


PAIRS = [("prompt a", png(0), png(100)), ("prompt b", png(1), png(101))]


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
    rows = [
        {"chosen_file_name": f"chosen/{n}.png", "rejected_file_name": f"rejected/{n}.png", "prompt": f"prompt {n}"}
        for n in "ab"
    ]
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n\n", encoding="utf-8")
    dataset = open_pairs(folder)
    assert contents(dataset) == PAIRS
    renamed = [
        {"win": row["chosen_file_name"], "lose": row["rejected_file_name"], "text": row["prompt"]} for row in rows
    ]
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, renamed)), encoding="utf-8")
    with pytest.raises(UserError, match=r"name its keys in `data\.columns\.chosen`"):
        open_pairs(folder)
    again = open_pairs(folder, {"columns": {"chosen": "win", "rejected": "lose", "prompt": "text"}})
    assert again.fingerprint == dataset.fingerprint


def test_metadata_that_is_no_json_names_its_line(open_pairs, tmp_path):
    folder = write_folders(tmp_path / "pairs")
    (folder / "metadata.jsonl").write_text("{}\n{nonsense\n", encoding="utf-8")
    with pytest.raises(UserError, match=r"line 2 of .* is not JSON"):
        open_pairs(folder)


def test_parquet_with_structs_images_bytes_and_paths(open_pairs, tmp_path):
    prompts = ["prompt a", "prompt b"]
    rows = {"chosen": structs(0, 1), "rejected": structs(100, 101), "prompt": prompts}
    plain = open_pairs(write_parquet(tmp_path / "structs" / "data.parquet", rows))
    assert contents(plain) == PAIRS
    features = datasets.Features(chosen=datasets.Image(), rejected=datasets.Image(), prompt=datasets.Value("string"))
    datasets.Dataset.from_dict(rows, features=features).to_parquet(tmp_path / "images" / "data.parquet")
    images = open_pairs(tmp_path / "images")
    raw = {"chosen": [png(0), png(1)], "rejected": [png(100), png(101)], "prompt": prompts}
    as_bytes = open_pairs(write_parquet(tmp_path / "bytes" / "data.parquet", raw))
    folder = write_folders(tmp_path / "paths")
    named = {
        "chosen": ["chosen/a.png", "chosen/b.png"],
        "rejected": ["rejected/a.png", "rejected/b.png"],
        "prompt": prompts,
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
    report = "\n".join(dataset.report())
    assert "broken image: 2" in report
    assert "text: broken image (rejected: not an image)" in report
    assert "cut: broken image (chosen: " in report
    assert "sizes: size mismatch (chosen 48 × 32, rejected 32 × 48)" in report
    assert "rejected/alone.png: no partner (no chosen/alone)" in report
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
    with pytest.raises(UserError, match=r"no usable pair, the first problem is a: missing caption"):
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


def test_verdicts_are_kept_and_never_stale(open_pairs, tmp_path, monkeypatch):
    folder = write_folders(tmp_path / "pairs")
    first = open_pairs(folder)
    verdicts = json.loads((tmp_path / "run" / "cache" / VERDICTS_FILE).read_text())
    assert len(verdicts) == 4
    monkeypatch.setattr("chats_train.data.dataset.decode", lambda _: pytest.fail("decoded twice"))
    assert open_pairs(folder) == first
    monkeypatch.undo()
    # The same name, length and time, other bytes: cut off in the middle and padded.
    image = folder / "chosen" / "a.png"
    whole = image.read_bytes()
    image.write_bytes(whole[: len(whole) // 2] + bytes(len(whole) - len(whole) // 2))
    assert kinds(open_pairs(folder)) == ["broken image"]


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


# Data sets of the hub.


def test_a_subset_is_one_configuration_of_a_data_set(tmp_path, monkeypatch):
    """A data set in the hub's own form, in a folder: its README names two configurations."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "hub")
    folder = tmp_path / "data"
    for name in ("first", "second"):
        write_parquet(folder / f"{name}.parquet", {"chosen": structs(0), "rejected": structs(1), "prompt": [name]})
    configs = "".join(f"- config_name: {name}\n  data_files: {name}.parquet\n" for name in ("first", "second"))
    (folder / "README.md").write_text(f"---\nconfigs:\n{configs}---\n")
    raw = {"version": 1, "family": "sd15", **PLACEHOLDERS, "resolution": 64, "bucket_reso_steps": 8}
    raw |= {"output_dir": str(tmp_path / "run")}
    for name in ("first", "second"):
        dataset = open_dataset(parse_config({**raw, "data": {"hub_id": str(folder), "subset": name}}), progress=False)
        assert [sample.prompt for sample in dataset.samples] == [name]
    with pytest.raises(UserError, match=r"`data.hub_id` is .*, which could not be fetched \(.*third"):
        open_dataset(parse_config({**raw, "data": {"hub_id": str(folder), "subset": "third"}}), progress=False)


FETCH = """
import sys
from chats_train.data import open_dataset
from chats_train.settings.config_file import PLACEHOLDERS, parse_config
data = {"hub_id": "owner/name", "revision": "v1.2"}
open_dataset(parse_config({"version": 1, "family": "sd15", **PLACEHOLDERS, "data": data}), progress=False)
"""


class Hub(http.server.BaseHTTPRequestHandler):
    """Has nothing, and remembers what it was asked for."""

    asked: ClassVar[list[str]] = []

    def do_GET(self):
        self.asked.append(self.path)
        self.send_response(404)
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_HEAD = do_GET

    def log_message(self, *_):
        pass


def test_a_revision_is_what_the_hub_is_asked_for(tmp_path):
    """By a process that takes a server on this machine for the hub."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    environment = {**os.environ, "HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}", "HF_HOME": str(tmp_path)}
    environment["PYTHONPATH"] = str(Path(__file__).resolve().parents[2])
    environment.pop("HF_HUB_OFFLINE", None)
    done = subprocess.run(
        [sys.executable, "-c", FETCH], env=environment, cwd=tmp_path, capture_output=True, text=True, check=False
    )
    server.shutdown()
    assert "UserError: `data.hub_id` is owner/name, which could not be fetched" in done.stderr
    assert any(path.startswith("/datasets/owner/name/resolve/v1.2/") for path in Hub.asked)
