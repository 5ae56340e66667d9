"""Damaged inputs inside a real ComfyUI: files for the pair loaders, in this process, and workflows, in a server."""

from __future__ import annotations

import os
import random
import sys
from collections.abc import Callable
from pathlib import Path

from . import cases
from .tensor_files import write_damaged

ROOT = Path(__file__).resolve().parents[2]
MEMBERS = ("preferred", "dispreferred")
# The pair loaders by the folder that each reads.
LOADERS = {
    "checkpoints": "CHATSCheckpointPairLoader",
    "diffusion_models": "CHATSDiffusionModelPairLoader",
    "loras": "CHATSLoRAPairLoader",
}


def run(name: str, count: int, seed: int, folder: Path, progress: Callable[[int], None]) -> cases.Result:
    """Reads damaged inputs of one kind; ComfyUI is imported here."""
    find_comfyui()
    if name == "loaders":
        return cases.run(LoaderFiles(folder / "whole"), count, seed, folder, progress)
    from serving import running_server

    from .workflows import Workflows

    with running_server(folder / "server") as server:
        return cases.run(Workflows(server), count, seed, folder, progress)


def find_comfyui() -> None:
    """Puts ComfyUI and the tests' mini models on the path, as the tests do."""
    here = str(ROOT / "tests" / "comfy")
    if here not in sys.path:
        sys.path.insert(0, here)
    import conftest

    if not conftest.USABLE:
        sys.exit("this is not the Python of a ComfyUI; run it with ComfyUI's, and set COMFYUI_PATH to its folder")


class LoaderFiles:
    """Safetensors files for the three pair loaders: a mini SD3 and LoRAs on it."""

    name = "files in ComfyUI's loaders"

    def __init__(self, folder: Path):
        import asyncio

        import conftest
        import mini
        import running

        folder.mkdir(parents=True)
        pack, self.pair = conftest.load_pack(), conftest.pack_module("chats.pair")
        self.nodes = {
            node.GET_SCHEMA().node_id: node
            for node in asyncio.run(asyncio.run(pack.comfy_entrypoint()).get_node_list())
        }
        self.model = mini.model("sd3", 1)
        self.whole: dict[tuple[str, str], Path] = {}
        for seed, member in enumerate(MEMBERS, start=1):
            weights = {key: value.half().contiguous() for key, value in mini.weights("sd3", seed).items()}
            contents = {
                "diffusion_models": weights,
                "checkpoints": {f"model.diffusion_model.{key}": value for key, value in weights.items()},
                "loras": running.lora(self.model, seed),
            }
            for kind, tensors in contents.items():
                path = folder / f"{kind}_{member}.safetensors"
                self.pair.write_member(
                    path, tensors, self.pair.PairMetadata(member, pair_id="p", prediction_type="flow", alpha=0.5)
                )
                self.whole[kind, member] = path

    def make(self, rng: random.Random, folder: Path) -> cases.Case:
        import folder_paths

        kind, member = rng.choice(list(LOADERS)), rng.choice(MEMBERS)
        path = folder / f"{member}.safetensors"
        mutation = write_damaged(rng, self.whole[kind, member].read_bytes(), path)
        (other,) = set(MEMBERS) - {member}
        os.link(self.whole[kind, other], folder / f"{other}.safetensors")
        folder_paths.folder_names_and_paths[kind] = ([str(folder)], {".safetensors"})
        folder_paths.filename_list_cache.clear()
        return cases.Case(mutation, path, {LOADERS[kind]: lambda: self._load(kind)})

    def _load(self, kind: str) -> str | None:
        """As the server does: what the node says when it is queued, then what it says when it runs."""
        import running

        node = self.nodes[LOADERS[kind]]
        names = [f"{member}.safetensors" for member in MEMBERS]
        verdict = node.validate_inputs(*names)
        if verdict is not True:
            return verdict
        rest = {"checkpoints": [], "diffusion_models": ["default"], "loras": [1.0, 1.0]}[kind]
        try:
            running.result(node, *([self.model] if kind == "loras" else []), *names, *rest)
        except self.pair.PairError as error:
            return str(error)
        return None
