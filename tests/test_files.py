"""A file is as it was or the whole new one, whatever stops its writing."""

import io
import os
import re
import stat

import pytest
import torch

from chats import files
from chats.files import replacing, sync, write_text
from chats.pair import PairMetadata, write_member


def test_the_old_file_stays_until_the_new_one_is_whole(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text("old")
    with replacing(path) as temporary:
        temporary.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


def test_after_an_error_the_old_file_is_there_and_no_other(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text("old")
    with pytest.raises(UnicodeEncodeError):
        write_text(path, "ne\ud800")  # half of a character, which UTF-8 has not
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_block_that_fails_before_it_writes_says_its_own_error(tmp_path):
    with pytest.raises(KeyError), replacing(tmp_path / "a"):
        raise KeyError("why")
    assert list(tmp_path.iterdir()) == []


def test_two_writers_of_one_file_do_not_share_a_temporary_one(tmp_path):
    path = tmp_path / "a"
    with replacing(path) as one, replacing(path) as other:
        assert one != other
        # Beside the file, since a rename is only whole within one file system; hidden, so that no glob of the folder
        # takes what a killed process left for a file of its own.
        for file in (one, other):
            assert file.parent == tmp_path
            assert re.fullmatch(r"\.a\.[0-9a-f]{32}\.tmp", file.name)
            file.write_text("x")


def test_folders_above_are_made(tmp_path):
    write_text(str(tmp_path / "runs" / "one" / "notes.txt"), "α ⚠\n")
    assert (tmp_path / "runs" / "one" / "notes.txt").read_bytes() == "α ⚠\n".encode()
    write_text(tmp_path / "runs" / "one" / "other.txt", "")


@pytest.mark.skipif(os.name == "nt", reason="Windows has no umask")
def test_a_file_has_the_mode_of_any_new_one_whoever_writes_it(tmp_path):
    """safetensors writes into a file for its owner alone, which it renames."""
    before = os.umask(0o027)
    try:
        write_member(tmp_path / "a.safetensors", {"a": torch.zeros(1)}, PairMetadata("preferred"))
        write_text(tmp_path / "a.txt", "x")
    finally:
        os.umask(before)
    assert [stat.S_IMODE(path.stat().st_mode) for path in sorted(tmp_path.iterdir())] == [0o640, 0o640]


def test_text_is_utf_8_on_every_system(tmp_path, monkeypatch):
    # Windows' own encoding, which Python takes where none is named, has no α.
    monkeypatch.setattr(io, "text_encoding", lambda encoding, stacklevel=2: encoding or "cp1252")
    write_text(tmp_path / "a", "α")
    assert (tmp_path / "a").read_bytes() == "α".encode()


def test_bytes_are_on_the_disk_before_the_name_and_the_name_before_it_is_over(tmp_path, monkeypatch):
    """A power cut after the rename, with the bytes still in memory, would leave an empty file under the good name."""
    done = []
    fsync, rename = os.fsync, os.replace
    monkeypatch.setattr(
        files.os, "fsync", lambda handle: (done.append(("sync", os.readlink(f"/proc/self/fd/{handle}"))), fsync(handle))
    )
    monkeypatch.setattr(
        files.os, "replace", lambda source, target: (done.append(("rename", str(target))), rename(source, target))
    )
    path = tmp_path / "a"
    with replacing(path) as temporary:
        temporary.write_text("x")
    assert done == [("sync", str(temporary)), ("rename", str(path)), ("sync", str(tmp_path))]


def test_no_handle_stays_open(tmp_path):
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        write_text(tmp_path / "a", "x")
    assert len(os.listdir("/proc/self/fd")) == before


def test_windows_has_no_handle_of_a_folder(tmp_path, monkeypatch):
    synced = []
    monkeypatch.setattr(files.os, "fsync", synced.append)
    file = tmp_path / "a"
    file.write_text("x")
    monkeypatch.setattr(files.os, "name", "nt")
    sync(tmp_path)
    assert synced == []
    sync(file)
    assert len(synced) == 1


def test_a_file_is_opened_for_writing_to_sync_it(tmp_path, monkeypatch):
    # Windows flushes no handle that can only read; no system opens a folder for writing.
    flags = []
    opened = os.open
    monkeypatch.setattr(files.os, "open", lambda path, how: (flags.append(how), opened(path, how))[1])
    (tmp_path / "a").write_text("x")
    sync(tmp_path / "a")
    sync(tmp_path)
    assert flags == [os.O_RDWR, os.O_RDONLY]
