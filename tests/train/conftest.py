"""The trainer's tests: they need the packages of the extra `train`; where those are missing, the folder is skipped with one loud line."""

import importlib.util

MISSING = [name for name in ("datasets", "diffusers", "PIL", "pydantic", "tqdm", "yaml") if importlib.util.find_spec(name) is None]

if MISSING:
    collect_ignore_glob = ["test_*.py"]


def pytest_report_header() -> str | None:
    return f'tests/train SKIPPED: {", ".join(MISSING)} missing; run `pip install -e ".[train,test]"`' if MISSING else None
