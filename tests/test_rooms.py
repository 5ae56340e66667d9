"""The rules of the house: which room may import what. Each room is imported where the forbidden modules cannot be."""

import ast
import graphlib
import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

COMFYUI = {"comfy", "comfy_api", "comfy_execution", "comfy_extras", "folder_paths", "server"}
TRAINING = {"diffusers", "accelerate", "datasets", "transformers", "peft"}
# The rooms of each package, lowest first: each imports only itself and what is before it.
ORDER = {
    "nodes": ["inputs", "advice", "loading", "sampling", "rating", "training"],
    "chats_train": [
        *(
            "support",
            "settings",
            "layouts",
            "families",
            "data",
            "encodings",
            "sampling",
            "sharding",
            "runs",
            "training",
            "check",
        ),
        *("distillation", "evaluation", "rating", "extraction", "demo", "inspection", "arguments", "cli", "__main__"),
    ],
}
BLOCKER = """
import sys
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {forbidden!r}:
            raise ImportError("forbidden here: " + name)
sys.meta_path.insert(0, Blocker())
"""


def import_without(forbidden: set[str], modules: list[str]) -> subprocess.CompletedProcess:
    code = BLOCKER.format(forbidden=forbidden) + "\n".join(f"import {module}" for module in modules)
    return subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)


def files_of(package: str) -> dict[str, Path]:
    """The files of a package by their dotted names."""
    files = sorted((ROOT / package).rglob("*.py"))
    return {".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): file for file in files}


def modules_of(package: str) -> list[str]:
    return list(files_of(package))


def imports_within(package: str) -> dict[str, set[str]]:
    """Which files of a package each of them imports, by dotted names: relatively, as all do (`nodes` alone is a file of
    ComfyUI's). Imports under TYPE_CHECKING count."""
    files, found = files_of(package), {}
    for name, file in files.items():
        folder = name.split(".") if file.name == "__init__.py" else name.split(".")[:-1]
        names = set()
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.level:
                above = folder[: len(folder) + 1 - node.level]
                origin = ".".join([*above, *filter(None, [node.module])])
                members = {f"{origin}.{alias.name}" for alias in node.names}
                names |= members & files.keys() or {origin}
        found[name] = names & files.keys()
    return found


def imported_names(file: Path) -> set[str]:
    """Absolute top-level names and, with their leading dots, relative ones."""
    names = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add("." * node.level + (node.module or "").split(".")[0])
    return names


def test_chats_needs_only_torch_safetensors_and_einops():
    result = import_without(COMFYUI | TRAINING | {"nodes", "chats_train"}, modules_of("chats"))
    assert result.returncode == 0, result.stderr


@pytest.mark.skipif(importlib.util.find_spec("diffusers") is None, reason="the trainer's packages are not installed")
def test_the_trainer_needs_neither_comfyui_nor_the_nodes():
    result = import_without(
        COMFYUI | {"nodes"}, [name for name in modules_of("chats_train") if not name.endswith("__main__")]
    )
    assert result.returncode == 0, result.stderr


def test_the_blocker_blocks():
    assert import_without({"json"}, ["json"]).returncode != 0


@pytest.mark.parametrize("file", files_of("nodes").values(), ids=lambda file: file.relative_to(ROOT).as_posix())
def test_nodes_need_only_comfyui_and_chats(file):
    # All of these come with ComfyUI, and nothing of the trainer's is among them.
    allowed = COMFYUI | {"torch", "safetensors", "PIL", "aiohttp", "nodes", "__future__"}
    # Which room may import which is seen to below.
    allowed |= {"..chats", "...chats", *(f"..{room}" for room in ORDER["nodes"])}
    names = {name for name in imported_names(file) if not (name.startswith(".") and not name.startswith(".."))}
    foreign = names - allowed - set(sys.stdlib_module_names)
    assert not foreign


@pytest.mark.parametrize("package", ORDER)
def test_a_room_imports_only_what_is_below_it(package):
    imports = imports_within(package)
    order = ORDER[package]
    rooms = {name: name.split(".")[1] for name in imports if name != package}
    assert set(rooms.values()) == set(order)
    arrows = [(name, at) for name in rooms for at in imports[name] if at in rooms and rooms[name] != rooms[at]]
    assert len(arrows) > len(order)  # it does see them
    assert not {(name, at) for name, at in arrows if order.index(rooms[at]) > order.index(rooms[name])}


@pytest.mark.parametrize("package", ["chats", "nodes", "chats_train", "benchmarks"])
def test_no_files_import_each_other_in_a_circle(package):
    graphlib.TopologicalSorter(imports_within(package)).prepare()  # raises CycleError, which names the circle
