"""Runs the real front end in a real browser, on a real ComfyUI server; skipped with one loud line where one of the
three is missing.

It takes ComfyUI's own Python (as tests/comfy does) with playwright, Debian's chromium, and the front end that belongs
to that ComfyUI: the installed one, or `<version>/` in the folder of `CHATS_FRONT_ENDS`. `CHATS_SCREENSHOTS` names a
folder to keep the screenshots in.
"""

import contextlib
import importlib.metadata
import importlib.util
import os
import re
import shutil
import sys
from pathlib import Path

import pytest

COMFY_TESTS = Path(__file__).resolve().parents[1] / "comfy"
sys.path.insert(0, str(COMFY_TESTS))

import conftest as comfy_tests  # noqa: E402  that of tests/comfy: where ComfyUI is, and its modules' order

sys.path.append(str(Path(__file__).parent))
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
CHROMIUM_ARGUMENTS = [
    # Everything that is not this machine is kept out; to ask for each request takes the cache away.
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1, EXCLUDE localhost",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-sync",
    "--no-first-run",
]
PACKAGE = "comfyui-frontend-package"


def wanted_front_end() -> str:
    """The version of the front end that the ComfyUI asks for."""
    requirements = (comfy_tests.COMFYUI / "requirements.txt").read_text(encoding="utf-8")
    return re.search(rf"^{PACKAGE}==(\S+)", requirements, re.MULTILINE)[1]


def front_end_arguments() -> list[str] | None:
    """ComfyUI's arguments for its own front end, or None where that is not there."""
    wanted = wanted_front_end()
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        if importlib.metadata.version(PACKAGE) == wanted:
            return []
    static = Path(os.environ.get("CHATS_FRONT_ENDS", "")) / wanted / "comfyui_frontend_package" / "static"
    return ["--front-end-root", str(static)] if "CHATS_FRONT_ENDS" in os.environ and static.is_dir() else None


def missing() -> str | None:
    """What the tests lack, in words."""
    if not comfy_tests.USABLE:
        return "no ComfyUI with this Python; set COMFYUI_PATH and use ComfyUI's Python"
    if CHROMIUM is None:
        return "no chromium; `apt-get install chromium`"
    if importlib.util.find_spec("playwright") is None:
        return "no playwright; `pip install playwright`"
    if front_end_arguments() is None:
        wanted = wanted_front_end()
        return f"no front end {wanted}; `pip install --no-deps --target $CHATS_FRONT_ENDS/{wanted} {PACKAGE}=={wanted}`"
    return None


MISSING = missing()
if MISSING:
    collect_ignore_glob = ["test_*.py"]


def pytest_report_header() -> str:
    return (
        f"tests/browser SKIPPED: {MISSING}"
        if MISSING
        else f"tests/browser: front end {wanted_front_end()}, {comfy_tests.pytest_report_header()}"
    )


def pytest_terminal_summary(terminalreporter) -> None:
    if MISSING:
        terminalreporter.write_line(f"tests/browser SKIPPED: {MISSING}", yellow=True, bold=True)


@pytest.fixture(scope="session")
def server_arguments() -> list[str]:
    """ComfyUI's arguments for the front end that belongs to it."""
    return front_end_arguments()


@pytest.fixture(scope="session")
def server(tmp_path_factory, server_arguments):
    from serving import running_server

    with running_server(tmp_path_factory.mktemp("server"), *server_arguments) as running:
        running.post("/api/settings/Comfy.TutorialCompleted", True)
        yield running


@pytest.fixture(scope="session")
def browser():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=CHROMIUM, args=CHROMIUM_ARGUMENTS)
        yield running
        running.close()


@pytest.fixture(scope="session")
def shared_page(browser, server):
    """One page for all modules: to load it takes seconds."""
    from page import FrontEnd

    running = FrontEnd(browser, server, nodes_2=comfy_tests.is_newest())
    yield running
    running.close()


@pytest.fixture(scope="session")
def front_end(shared_page):
    """Nodes 2.0 in the newest, classic in others."""
    return shared_page


@pytest.fixture(scope="session")
def screenshots(tmp_path_factory) -> Path:
    folder = Path(os.environ.get("CHATS_SCREENSHOTS") or tmp_path_factory.mktemp("screenshots"))
    folder = folder / f"front-end-{wanted_front_end()}"
    folder.mkdir(parents=True, exist_ok=True)
    return folder
