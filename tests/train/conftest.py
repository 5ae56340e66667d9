"""The trainer's tests: they need the packages of the extra `train`; where those are missing, the folder is skipped with
one loud line."""

import importlib.util
from pathlib import Path

import pytest

MISSING = [
    name
    for name in ("datasets", "diffusers", "PIL", "pydantic", "tqdm", "yaml")
    if importlib.util.find_spec(name) is None
]

if MISSING:
    collect_ignore_glob = ["test_*.py"]


def pytest_report_header() -> str | None:
    return (
        f'tests/train SKIPPED: {", ".join(MISSING)} missing; run `pip install -e ".[train,test]"`' if MISSING else None
    )


@pytest.fixture(scope="session")
def bases(tmp_path_factory):
    """A tiny base of a family, made once."""
    import tiny_pipelines

    made = {}

    def base(family: str) -> Path:
        if family not in made:
            made[family] = tiny_pipelines.save_pipeline(family, tmp_path_factory.mktemp(family))
        return made[family]

    return base


@pytest.fixture(scope="session")
def pairs(tmp_path_factory) -> Path:
    """Pairs of noise as two folders with captions."""
    import tiny_runs

    return tiny_runs.write_pairs(tmp_path_factory.mktemp("pairs"))


@pytest.fixture(scope="session")
def clip(tmp_path_factory) -> Path:
    """The folder of a tiny random scorer; a test that changes it copies it."""
    import tiny_scorer

    return tiny_scorer.save_clip(tmp_path_factory.mktemp("clip"))


@pytest.fixture
def open_pairs(tmp_path, monkeypatch):
    """Opens a data set with a small run's settings; nothing is fetched."""
    import socket

    from chats_train.data import open_dataset
    from chats_train.settings.config_file import PLACEHOLDERS, parse_config

    def refuse(*_):
        raise AssertionError("nothing is fetched unless the user names a hub id")

    monkeypatch.setattr(socket.socket, "connect", refuse)

    def open_pairs(path, data=None):
        raw = {"version": 1, "family": "sd15", **PLACEHOLDERS, "resolution": 64, "bucket_reso_steps": 8}
        raw |= {"output_dir": str(tmp_path / "run"), "data": {"path": str(path), **(data or {})}}
        return open_dataset(parse_config(raw), progress=False)

    return open_pairs


@pytest.fixture
def config(bases, pairs, tmp_path):
    """A tiny run's settings; each gets a folder of its own."""
    import tiny_runs

    from chats_train.settings.config_file import parse_config

    def make(family="sd15", output="run", **settings):
        return parse_config(tiny_runs.run_settings(family, bases(family), pairs, tmp_path, output, **settings))

    return make
