"""Runs inside a real ComfyUI, on its CPU mode. Where the interpreter is not ComfyUI's, the folder is skipped with one
loud line.

ComfyUI's folder: `COMFYUI_PATH`, else the folder above `custom_nodes/`, else `~/comfy/ComfyUI`.
"""

import asyncio
import functools
import importlib.util
import os
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
pytest.register_assert_rewrite("training_runs")


def find_comfyui() -> Path | None:
    """ComfyUI's folder, or None."""
    stated = os.environ.get("COMFYUI_PATH")
    above = ROOT.parents[1] if ROOT.parent.name == "custom_nodes" else None
    for folder in [Path(stated)] if stated else [above, Path.home() / "comfy" / "ComfyUI"]:
        if folder is not None and (folder / "comfy" / "samplers.py").is_file():
            return folder
    return None


COMFYUI = find_comfyui()
USABLE = (
    COMFYUI is not None
    and importlib.util.find_spec("torchsde") is not None
    and importlib.util.find_spec("aiohttp") is not None
)
SKIPPED = (
    f"tests/comfy SKIPPED: ComfyUI is at {COMFYUI}, but this Python is not its own; run them with ComfyUI's Python "
    "(docs/development.md)"
    if COMFYUI is not None
    else "tests/comfy SKIPPED: no ComfyUI found; set COMFYUI_PATH to its folder"
)

if USABLE:
    sys.path[:] = [str(COMFYUI), str(Path(__file__).parent)] + [p for p in sys.path if Path(p or ".").resolve() != ROOT]
    import comfy.options
    import utils.install_util  # noqa: F401  before nodes.py puts comfy/ on the path, whose utils.py would hide it (main.py does the same)

    comfy.options.enable_args_parsing(False)
    from comfy.cli_args import args

    args.cpu = True
    args.disable_api_nodes = True
else:
    collect_ignore_glob = ["test_*.py"]


def is_newest() -> bool:
    """Whether this is a ComfyUI of the newest kind; what is slow and the same in all versions is tried there alone."""
    from comfyui_version import __version__

    return tuple(map(int, __version__.split(".")[:2])) >= (0, 33)


newest_only = pytest.mark.skipif(USABLE and not is_newest(), reason="tried in the newest ComfyUI")


def is_oldest() -> bool:
    """Whether this is a ComfyUI of the oldest kind that the pack promises to work in."""
    from comfyui_version import __version__

    return tuple(map(int, __version__.split(".")[:2])) <= (0, 3)


# What is slow, and found the same in the versions between as at either end.
ends_only = pytest.mark.skipif(
    USABLE and not (is_newest() or is_oldest()), reason="tried in the oldest and the newest ComfyUI"
)


def newest(*values: object) -> list:
    """Values of a parameter that are tried in the newest ComfyUI only."""
    return [pytest.param(*(value if isinstance(value, tuple) else (value,)), marks=newest_only) for value in values]


def pytest_report_header() -> str:
    if not USABLE:
        return SKIPPED
    from comfyui_version import __version__

    return f"tests/comfy: ComfyUI {__version__} at {COMFYUI}"


def pytest_terminal_summary(terminalreporter) -> None:
    if not USABLE:
        terminalreporter.write_line(SKIPPED, yellow=True, bold=True)


@pytest.fixture(autouse=True)
def nothing_loaded() -> None:
    """Each test begins with no model loaded. One whose patcher is gone while a fixture holds its weights would stay in
    ComfyUI's list: taken for a leak, for which the garbage collector is called, longer than a run takes, at each."""
    if USABLE:
        import comfy.model_management

        comfy.model_management.unload_all_models()
        comfy.model_management.current_loaded_models.clear()


@pytest.fixture(scope="session")
def pack():
    """The pack, loaded from its path as ComfyUI loads custom nodes."""
    return load_pack()


@pytest.fixture(scope="session")
def nodes(pack) -> dict:
    """The pack's nodes by id: calling one gives its outputs."""
    from running import result

    classes = asyncio.run(asyncio.run(pack.comfy_entrypoint()).get_node_list())
    return {node.GET_SCHEMA().node_id: functools.partial(result, node) for node in classes}


@pytest.fixture(scope="session")
def pairs():
    """A preferred and a dispreferred model by kind; made once, never changed."""
    import mini_architectures

    return functools.cache(lambda kind: (mini_architectures.model(kind, 1), mini_architectures.model(kind, 2)))


@pytest.fixture(scope="session")
def twins():
    """Two models with the same weights, each its own, by kind."""
    import mini_architectures

    return functools.cache(lambda kind: (mini_architectures.model(kind, 1), mini_architectures.model(kind, 1)))


@pytest.fixture(scope="session")
def narrow_known() -> None:
    """The trainer's narrow SD1.5 and SDXL are loaded like real ones."""
    import mini_architectures

    mini_architectures.know_narrow()


def load_pack():
    name = "custom_nodes_ComfyUI_CHATS"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(
            name, ROOT / "__init__.py", submodule_search_locations=[str(ROOT)]
        )
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        spec.loader.exec_module(module)
    return sys.modules[name]


def pack_module(name: str):
    """A module of the pack by its dotted name below the root."""
    return importlib.import_module(f"{load_pack().__name__}.{name}")
