"""Sources on the Hugging Face hub: a server of this machine stands in for it and refuses in every way; what is no hub
id never reaches it."""

import http.server
import json
import os
import re
import subprocess
import sys
import threading
from pathlib import Path
from typing import ClassVar

import pytest

from chats_train.families import SourceError, load_family
from chats_train.support.hub import FILE_SUFFIXES, is_hub_id

TEMPLATE = (
    "error: `pretrained_model` is `models/base.safetensors`, which is not there; correct the path, or give a "
    ".safetensors checkpoint, a diffusers folder, or a hub id (owner/name)\n"
)
REVISION = "0123456789abcdef0123456789abcdef01234567"
# A repository's name says how the hub answers for it: a status, and what the hub's own headers say of it.
ANSWERS = {
    "gated": (403, {"X-Error-Code": "GatedRepo"}),
    "missing": (404, {"X-Error-Code": "RepoNotFound"}),
    "refused": (401, {}),
    "broken": (500, {}),
}
LOG_IN = "log in with `hf auth login`"
# What the library of data sets says of these is all that is left of the hub's answer.
OF_A_DATA_SET = rf".*\); correct that, {LOG_IN}, or fetch it yourself and set `data.path`"
CASES = [
    (
        "pretrained_model",
        "gated",
        rf"\(it is gated\); accept its terms at http://\S+/owner/gated, {LOG_IN}, or fetch it",
    ),
    ("pretrained_model", "missing", rf"\(the hub has none of this name, or it is private\); correct it, {LOG_IN}, or "),
    ("pretrained_model", "refused", r"\(the hub answers with HTTP status 401\); log in anew with `hf auth login`, or "),
    ("pretrained_model", "broken", r"\(the hub answers with HTTP status 500\); try again later, or "),
    ("pretrained_model", "dropped", r"\(\S.*\); check the connection, or fetch it yourself and give its folder"),
    ("--scorer", "missing", rf"\(the hub has none of this name, or it is private\); correct it, {LOG_IN}, or "),
    ("--scorer", "dropped", r"\(\S.*\); check the connection, or fetch it yourself and give its folder"),
    ("data.hub_id", "gated", r"\(.*gated" + OF_A_DATA_SET),
    ("data.hub_id", "missing", r"\(.*missing" + OF_A_DATA_SET),
    ("data.hub_id", "dropped", r"\(\S.*\); check the connection, or fetch it yourself and set `data.path`"),
    ("data.revision", "name", r"\(it has no such revision\); correct the revision, or "),
]
# Every way to name a repository, in one process, as its imports take seconds. The pauses between the library's retries
# are left out, not the retries.
ASK = """
import json, sys, time
time.sleep = lambda seconds: None
from chats_train.data import open_dataset
from chats_train.evaluation.scorers import open_scorers
from chats_train.families import load_family
from chats_train.settings.config_file import PLACEHOLDERS, parse_config

def data(source, **further):
    raw = {"version": 1, "family": "sd15", **PLACEHOLDERS, "data": {"hub_id": source, **further}}
    open_dataset(parse_config(raw), progress=False)

ways = {
    "pretrained_model": lambda source: load_family("sd15", source),
    "--scorer": lambda source: open_scorers([f"pickscore={source}"], "cpu"),
    "data.hub_id": data,
    "data.revision": lambda source: data(source, revision="v1.2"),
}
said = {}
for way, name, _ in json.loads(sys.argv[1]):
    try:
        ways[way]("owner/" + name)
    except Exception as error:
        said[f"{way} {name}"] = type(error).__name__, str(error)
print(json.dumps(said))
"""


class Hub(http.server.BaseHTTPRequestHandler):
    """Answers as a repository's name says, and remembers what it was asked for."""

    asked: ClassVar[list[str]] = []

    def do_GET(self):
        self.asked.append(self.path)
        if "owner/dropped" in self.path:
            self.close_connection = True
            return
        status, headers = next((ANSWERS[name] for name in ANSWERS if f"owner/{name}" in self.path), (404, {}))
        if "/v1.2" in self.path:
            status, headers = 404, {"X-Error-Code": "RevisionNotFound"}
        self.send_response(status)
        for name, value in {**headers, "Content-Length": "0"}.items():
            self.send_header(name, value)
        self.end_headers()

    do_HEAD = do_POST = do_GET

    def log_message(self, *_):
        pass


def test_whatever_the_hub_answers_is_one_sentence(tmp_path):
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    endpoint = f"http://127.0.0.1:{server.server_port}"
    environment = {**os.environ, "HF_ENDPOINT": endpoint, "HF_HOME": str(tmp_path), "NO_PROXY": "127.0.0.1"}
    environment["PYTHONPATH"] = str(Path(__file__).resolve().parents[2])
    for name in ("HF_HUB_OFFLINE", "HF_TOKEN"):
        environment.pop(name, None)
    command = [sys.executable, "-c", ASK, json.dumps(CASES)]
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False)
    server.shutdown()
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout.splitlines()[-1])
    for (way, _, expected), (kind, sentence) in zip(CASES, said.values(), strict=True):
        assert kind == ("SourceError" if way == "pretrained_model" else "UserError"), sentence
        assert "\n" not in sentence
        assert sentence.startswith(f"`{way if way != 'data.revision' else 'data.hub_id'}` ")
        assert re.search(rf"could not be fetched {expected}", sentence)
    assert any(path.startswith("/datasets/owner/name/resolve/v1.2/") for path in Hub.asked)


def test_the_untouched_template_is_refused_at_once(tmp_path):
    """In one sentence, before what takes seconds to import, and so without anything that could ask the hub."""
    code = "import sys; from chats_train.cli import main; main(['init', 'sdxl', '--output', 'run.yaml']); "
    code += "print(main(['check', 'run.yaml']), {'torch', 'huggingface_hub', 'diffusers'} & sys.modules.keys())"
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2])}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.stdout.splitlines()[-1] == "2 set()"
    assert done.stderr == TEMPLATE


def test_only_an_id_names_the_hub():
    assert all(map(is_hub_id, ("owner/name", "stabilityai/stable-diffusion-3.5-medium", "o_1/n.1")))
    paths = ["./a", "../a", "/a", "~/a", "C:/a", "C:\\a", "a\\b", "a/b/c", "a/", "a", "https://hub/a", "模型/base", ""]
    paths += [f"models/base{suffix}" for suffix in FILE_SUFFIXES] + ["models/BASE.SafeTensors"]
    assert not any(map(is_hub_id, paths))


def test_offline_what_was_fetched_before_is_taken(bases, tmp_path, monkeypatch):
    """The hub's cache as it lays it out: the commit that a branch is at, and that commit's files."""
    held = tmp_path / "models--owner--name"
    (held / "refs").mkdir(parents=True)
    (held / "refs" / "main").write_text(REVISION)
    (held / "snapshots").mkdir()
    (held / "snapshots" / REVISION).symlink_to(bases("sd15"), target_is_directory=True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    fetched, local = load_family("sd15", "owner/name"), load_family("sd15", str(bases("sd15")))
    assert fetched.parameter_counts() == local.parameter_counts()
    with pytest.raises(SourceError, match=r"`pretrained_model` is owner/other, .*unset HF_HUB_OFFLINE once, or "):
        load_family("sd15", "owner/other")
