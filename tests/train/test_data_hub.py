"""Data sets of the hub: what is asked for, by its settings."""

import http.server
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import ClassVar

import pytest
from pairs_on_disk import prompts, structs, write_parquet

from chats_train.data import open_dataset
from chats_train.settings.config_file import PLACEHOLDERS, parse_config
from chats_train.support.errors import UserError


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
        assert prompts(dataset) == [name]
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
