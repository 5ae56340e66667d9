"""The nodes as data: what workflows and API graphs hold of them (`node_api.json`), and their English texts
(`locales/en/nodeDefs.json`).

Both files are committed and held against the nodes. This writes them anew, with the Python of any ComfyUI that the pack
supports:

    COMFYUI_PATH=<ComfyUI> <ComfyUI's python> tests/comfy/describe_nodes.py
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path

if __name__ == "__main__":
    import conftest  # puts ComfyUI on the path, as for the tests

import comfy.samplers
import folder_paths
import nodes as comfy_nodes
import workflow_graph

ROOT = Path(__file__).resolve().parents[2]
NODE_API = Path(__file__).with_name("node_api.json")
ENGLISH, CHINESE = (ROOT / "locales" / language / "nodeDefs.json" for language in ("en", "zh"))
FOLDERS = ("checkpoints", "diffusion_models", "loras")
# What of an input a saved workflow or an API graph depends on; `control_after_generate` takes a place of its own in
# `widgets_values`.
RECORDED_OPTIONS = ("default", "min", "max", "control_after_generate")


def node_infos(pack) -> dict[str, dict]:
    """Every node by id, as `/object_info` has it, in the order of the pack; each list of files holds one file,
    `<folder>.safetensors`."""
    with one_file_in_each_folder():
        classes = asyncio.run(asyncio.run(pack.comfy_entrypoint()).get_node_list())
        return {node.GET_SCHEMA().node_id: node.GET_NODE_INFO_V1() for node in classes}


@contextlib.contextmanager
def one_file_in_each_folder() -> Iterator[None]:
    """Within the block, ComfyUI's model folders hold one file each, named after the folder, so that a list of files
    tells its origin."""
    saved = {folder: folder_paths.folder_names_and_paths[folder] for folder in FOLDERS}
    with tempfile.TemporaryDirectory() as scratch:
        try:
            for folder in FOLDERS:
                place = Path(scratch) / folder
                place.mkdir()
                (place / f"{folder}.safetensors").touch()
                folder_paths.folder_names_and_paths[folder] = ([str(place)], {".safetensors"})
                folder_paths.filename_list_cache.pop(folder, None)
            yield
        finally:
            folder_paths.folder_names_and_paths.update(saved)
            for folder in FOLDERS:
                folder_paths.filename_list_cache.pop(folder, None)


def node_api(infos: dict[str, dict]) -> dict[str, dict]:
    """By node id, the inputs and the outputs, both in order; lists that are ComfyUI's stand there by their kind, in
    angle brackets."""
    return {
        node_id: {
            "inputs": [
                _input_api(name, *stated) | ({"optional": True} if name in info["input"].get("optional", {}) else {})
                for name, stated in workflow_graph.inputs_of(info).items()
            ],
            "outputs": [
                {"name": name, "type": kind} for name, kind in zip(info["output_name"], info["output"], strict=True)
            ],
        }
        for node_id, info in infos.items()
    }


def _input_api(name: str, kind: str, options: dict) -> dict:
    recorded = {"name": name, "type": kind, **{key: options[key] for key in RECORDED_OPTIONS if key in options}}
    return recorded | ({"options": _options_by_kind(options["options"])} if "options" in options else {})


def _options_by_kind(options: list[str]) -> list[str]:
    foreign = {
        "<samplers>": comfy.samplers.KSampler.SAMPLERS,
        "<schedulers>": comfy.samplers.KSampler.SCHEDULERS,
        "<weight_dtype of UNETLoader>": comfy_nodes.UNETLoader.INPUT_TYPES()["required"]["weight_dtype"][0],
    }
    kinds = [kind for kind, values in foreign.items() if list(values) == list(options)]
    files = {f"{folder}.safetensors": f"<files of {folder}>" for folder in FOLDERS}
    return kinds or [files.get(option, option) for option in options]


def english_texts(infos: dict[str, dict]) -> dict[str, dict]:
    """The texts of the nodes, in the format that ComfyUI's front end translates them by."""
    return {
        node_id: {
            "display_name": info["display_name"],
            "description": info["description"],
            "inputs": {
                name: {"name": name, "tooltip": options["tooltip"]}
                for name, (_, options) in workflow_graph.inputs_of(info).items()
            },
            "outputs": {
                str(slot): {"name": name, "tooltip": tooltip}
                for slot, (name, tooltip) in enumerate(zip(info["output_name"], info["output_tooltips"], strict=True))
            },
        }
        for node_id, info in infos.items()
    }


def write_json(path: Path, content: dict) -> None:
    path.write_text(json.dumps(content, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")


def main() -> None:
    infos = node_infos(conftest.load_pack())
    write_json(NODE_API, node_api(infos))
    write_json(ENGLISH, english_texts(infos))


if __name__ == "__main__":
    main()
