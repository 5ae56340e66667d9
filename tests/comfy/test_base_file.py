"""Which file a pair's metadata name as its base: the one that the graph loads the MODEL from, or none."""

from types import SimpleNamespace

import folder_paths
import nodes as comfy_nodes
import pytest
from comfy_extras.nodes_model_merging import ModelMergeSimple
from conftest import pack_module

CHECKPOINT = {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "sub/a.safetensors"}}
MODEL = {"class_type": "UNETLoader", "inputs": {"unet_name": "b.safetensors", "weight_dtype": "default"}}
LORA = {"lora_name": "a.safetensors", "strength_model": 1.0, "strength_clip": 1.0}
LORA = {"class_type": "LoraLoader", "inputs": {**LORA, "model": ["1", 0], "clip": ["1", 1]}}
TWO = {"preferred": "sub/a.safetensors", "dispreferred": "b.safetensors", "weight_dtype": "default"}
MERGED = {"class_type": "ModelMergeSimple", "inputs": {"model1": ["1", 0], "model2": ["3", 0], "ratio": 0.5}}
NOTHING = SimpleNamespace()


@pytest.fixture
def told(pack, tmp_path, monkeypatch):
    """The file that the graph tells: its nodes by id, `model` of node 9 connected to node 2."""
    for folder, file in (("checkpoints", "sub/a.safetensors"), ("diffusion_models", "b.safetensors")):
        (tmp_path / folder / file).parent.mkdir(parents=True)
        (tmp_path / folder / file).touch()
        monkeypatch.setitem(folder_paths.folder_names_and_paths, folder, ([str(tmp_path / folder)], {".safetensors"}))
    loaders = pack_module("nodes.loading.loaders")
    for kind in (ModelMergeSimple, loaders.CHATSDiffusionModelPairLoader):
        monkeypatch.setitem(comfy_nodes.NODE_CLASS_MAPPINGS, kind.__name__, kind)
    base_file = pack_module("nodes.training.base_file").base_file
    train = {"class_type": "CHATSTrainLoRAPair", "inputs": {"model": ["2", 0], "dataset": "b.safetensors"}}
    return lambda nodes, model=NOTHING: base_file(model, {**nodes, "9": train}, "9")


@pytest.mark.parametrize(
    ("nodes", "file"),
    [
        ({"2": CHECKPOINT}, "a.safetensors"),
        ({"2": MODEL}, "b.safetensors"),
        ({"1": CHECKPOINT, "2": LORA}, "a.safetensors"),
        ({"1": CHECKPOINT, "3": MODEL, "2": MERGED}, None),
        ({"2": {"class_type": "CHATSDiffusionModelPairLoader", "inputs": TWO}}, None),
        ({"1": CHECKPOINT, "2": {**LORA, "inputs": {**LORA["inputs"], "lora_name": "b.safetensors"}}}, None),
        ({"2": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "gone.safetensors"}}}, None),
        ({"2": {**LORA, "inputs": {"model": ["2", 0]}}}, None),
        ({}, None),
    ],
    ids=["checkpoint", "diffusion model", "LoRA on it", "merged", "two files", "two models", "gone", "circle", "none"],
)
def test_the_graph_tells_the_file_or_nothing_is_said(told, nodes, file):
    assert told(nodes) == file


def test_where_the_model_itself_says_another_file_nothing_is_said(told):
    """Newer ComfyUIs keep the call that loaded a MODEL."""
    loaded = [SimpleNamespace(cached_patcher_init=(print, (f"/models/{name}.safetensors",))) for name in "ab"]
    assert [told({"2": CHECKPOINT}, model) for model in loaded] == ["a.safetensors", None]
