"""The pack in a running ComfyUI server: what it lists, what it serves, and whole runs of the shipped workflows to a PNG.

The server loads mini models of random weights under the file names that the workflows ask for.
"""

from __future__ import annotations

import collections
import contextlib
import io
import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import folder_paths
import mini
import numpy as np
import pytest
import torch
import workflow_graph
from PIL import Image
from safetensors.torch import save_file

ROOT = Path(__file__).resolve().parents[2]
COMFYUI = Path(folder_paths.__file__).resolve().parent
PACK = "ComfyUI-CHATS"
WORKFLOWS = {path.stem: path for path in sorted((ROOT / "workflows").glob("*.json"))}
NODES = {
    "CHATSCheckpointPairLoader",
    "CHATSDiffusionModelPairLoader",
    "CHATSProxyPrompt",
    "CHATSApply",
    "CHATSGuider",
    "CHATSKSampler",
}
RARE_INPUTS = {"form", "start_percent", "end_percent", "weight_dtype"}
START_SECONDS, RUN_SECONDS = 120, 120
VAE_CONTRAST = 0.1


def half(weights: dict[str, torch.Tensor], prefix: str = "") -> dict[str, torch.Tensor]:
    return {prefix + key: value.half().contiguous() for key, value in weights.items()}


def text_encoder_weights(seed: int) -> dict[str, torch.Tensor]:
    """Random weights of CLIP-L, as SD1.5 checkpoints hold it."""
    import comfy.sd1_clip
    from comfy.clip_model import CLIPTextModel
    from comfy.ops import disable_weight_init

    config = json.loads((Path(comfy.sd1_clip.__file__).parent / "sd1_clip_config.json").read_text(encoding="utf-8"))
    state = mini.random_weights(CLIPTextModel(config, torch.float32, "cpu", disable_weight_init), seed)
    return {key: value for key, value in state.items() if key.startswith("text_model.")}


def vae_weights(seed: int) -> dict[str, torch.Tensor]:
    """Random weights of TAESD, a VAE of 5 MB that ComfyUI takes for any SD1.5 checkpoint."""
    from comfy.taesd.taesd import TAESD

    state = mini.random_weights(TAESD(latent_channels=4), seed)
    decoder = [key for key in state if key.startswith("taesd_decoder.")]
    *_, last_weight, last_bias = sorted(decoder, key=lambda key: (int(key.split(".")[1]), key.endswith("bias")))
    # Medium grey with some contrast: as they fall, the colours run out of the range of a PNG.
    output = {last_weight: state[last_weight] * VAE_CONTRAST, last_bias: torch.full_like(state[last_bias], 0.5)}
    return {**state, **output, "vae_scale": torch.tensor(1.0), "vae_shift": torch.tensor(0.0)}


def write_models(models: Path) -> None:
    """A pair as diffusion models, the same pair as checkpoints, and files that nobody can load."""
    unets, checkpoints = models / "diffusion_models", models / "checkpoints"
    unets.mkdir(parents=True)
    checkpoints.mkdir()
    preferred, dispreferred = mini.weights("sd15", 1), mini.weights("sd15", 2)
    save_file(half(preferred), unets / "chats_sd15_preferred.safetensors")
    save_file(half(dispreferred), unets / "chats_sd15_dispreferred.safetensors")
    encoders = half(text_encoder_weights(3), "cond_stage_model.transformer.") | half(vae_weights(4), "first_stage_model.")
    whole = half(preferred, "model.diffusion_model.") | encoders
    save_file(whole, checkpoints / "v1-5-pruned-emaonly-fp16.safetensors")
    # The pair loader takes CLIP and VAE from the preferred file, so this one does without.
    save_file(half(dispreferred, "model.diffusion_model."), checkpoints / "dispreferred.safetensors")
    content = (unets / "chats_sd15_preferred.safetensors").read_bytes()
    (unets / "truncated.safetensors").write_bytes(content[: len(content) // 2])
    torch.save({"weight": torch.zeros(1)}, unets / "pickled.ckpt")


def write_base_directory(base: Path) -> None:
    """What a user's folder holds: the pack, the models, an input picture."""
    ignored = shutil.ignore_patterns(".*", "__pycache__", "tests", "benchmarks")
    shutil.copytree(ROOT, base / "custom_nodes" / PACK, ignore=ignored)
    write_models(base / "models")
    (base / "input").mkdir()
    columns, rows = np.meshgrid(np.arange(128), np.arange(96))
    picture = np.stack([columns * 2, rows * 2, 255 - columns], axis=-1).astype(np.uint8)
    alpha = np.where(columns < 64, 255, 0).astype(np.uint8)  # ComfyUI's mask is where a picture is transparent: the right half
    Image.fromarray(np.dstack([picture, alpha])).save(base / "input" / "example.png")


def python_path(scratch: Path) -> str:
    """A path with the empty folder of templates that ComfyUI before 0.4 wants, whichever templates package is installed."""
    if "legacy_templates_path" not in (COMFYUI / "app" / "frontend_management.py").read_text(encoding="utf-8"):
        package = scratch / "site" / "comfyui_workflow_templates"
        (package / "templates").mkdir(parents=True)
        (package / "__init__.py").touch()
    return os.pathsep.join(filter(None, [str(scratch / "site"), os.environ.get("PYTHONPATH")]))


def free_port() -> int:
    with contextlib.closing(socket.socket()) as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


@dataclass
class Server:
    """The HTTP interface of one running ComfyUI."""

    port: int
    process: subprocess.Popen
    log: Path

    def get(self, path: str) -> bytes:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=30) as response:
            return response.read()

    def json(self, path: str) -> dict:
        return json.loads(self.get(path))

    def wait_until_up(self) -> None:
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline and self.process.poll() is None:
            with contextlib.suppress(urllib.error.URLError, ConnectionError, TimeoutError):
                self.get("/system_stats")
                return
            time.sleep(0.25)
        pytest.fail(f"ComfyUI did not start; the end of its log:\n{self.log.read_text(errors='replace')[-4000:]}")

    def queue(self, graph: dict[str, dict]) -> dict:
        """The answer to `POST /prompt`, which has the status 400 when no node can run."""
        body = json.dumps({"prompt": graph}).encode()
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}/prompt", body, {"Content-Type": "application/json"})
        try:
            with urllib.request.urlopen(request, timeout=60) as response:
                return json.load(response)
        except urllib.error.HTTPError as error:
            if error.code != 400:
                raise
            return json.load(error)

    def run(self, graph: dict[str, dict]) -> list[np.ndarray]:
        """The pictures that a graph saves, each [height, width, 3] of 0 to 255."""
        answer = self.queue(graph)
        assert answer.get("node_errors") == {}, answer
        deadline = time.monotonic() + RUN_SECONDS
        while not (entry := self.json(f"/history/{answer['prompt_id']}").get(answer["prompt_id"])):
            assert time.monotonic() < deadline, f"no result within {RUN_SECONDS} s"
            time.sleep(0.2)
        assert entry["status"]["status_str"] == "success", entry["status"]["messages"]
        saved = [image for output in entry["outputs"].values() for image in output.get("images", [])]
        return [self.picture(**image) for image in saved]

    def picture(self, filename: str, subfolder: str, type: str) -> np.ndarray:
        content = self.get(f"/view?filename={filename}&subfolder={subfolder}&type={type}")
        with Image.open(io.BytesIO(content)) as image:
            assert image.format == "PNG"
            return np.asarray(image.convert("RGB"))


@pytest.fixture(scope="module")
def server(tmp_path_factory) -> Iterator[Server]:
    scratch = tmp_path_factory.mktemp("server")
    write_base_directory(scratch / "base")
    port = free_port()
    command = [sys.executable, "main.py", "--cpu", "--port", str(port), "--base-directory", str(scratch / "base")]
    command += ["--database-url", "sqlite:///:memory:", "--disable-auto-launch", "--disable-api-nodes"]
    # One thread: the models are tiny, and threads that wait for each other on a busy machine take ten times as long.
    environment = {**os.environ, "PYTHONPATH": python_path(scratch), "OMP_NUM_THREADS": "1"}
    log = scratch / "log.txt"
    with log.open("wb") as output:
        process = subprocess.Popen(command, cwd=COMFYUI, env=environment, stdout=output, stderr=subprocess.STDOUT)
        try:
            running = Server(port, process, log)
            running.wait_until_up()
            yield running
        finally:
            process.terminate()
            try:
                process.wait(timeout=15)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            # Half a gigabyte of weights; pytest would keep them for three runs.
            shutil.rmtree(scratch / "base")


@pytest.fixture(scope="module")
def object_info(server) -> dict:
    return server.json("/object_info")


@pytest.fixture(params=WORKFLOWS)
def workflow(request) -> dict:
    return json.loads(WORKFLOWS[request.param].read_text(encoding="utf-8"))


def shipped(name: str, object_info: dict, steps: int = 2) -> dict[str, dict]:
    """A shipped workflow as an API graph, with few steps."""
    workflow = json.loads(WORKFLOWS[name].read_text(encoding="utf-8"))
    return workflow_graph.set_inputs(workflow_graph.to_api(workflow, object_info), steps=steps)


def assert_is_a_picture(picture: np.ndarray, width: int, height: int) -> None:
    """Neither black, which NaN latents decode to, nor of one colour."""
    assert picture.shape == (height, width, 3)
    assert picture.mean() > 5
    assert picture.reshape(-1, 3).std(axis=0).min() > 5


def test_object_info_describes_every_node(object_info):
    ours = {name: node for name, node in object_info.items() if name.startswith("CHATS")}
    assert set(ours) >= NODES
    for name, node in ours.items():
        assert node["description"], f"{name} has no description"
        assert node["python_module"] == f"custom_nodes.{PACK}"
        assert len(node["output_tooltips"]) == len(node["output"]), f"{name} lacks a tooltip of an output"
        assert all(node["output_tooltips"])
        for entry, (_, options) in workflow_graph.inputs_of(node).items():
            assert options.get("tooltip"), f"{name}: `{entry}` has no tooltip"
            assert options.get("advanced", False) == (entry in RARE_INPUTS), f"{name}: `{entry}` is advanced: {options.get('advanced')}"


def test_file_lists_offer_only_safetensors(object_info):
    for loader in ("CHATSCheckpointPairLoader", "CHATSDiffusionModelPairLoader"):
        inputs = workflow_graph.inputs_of(object_info[loader])
        for member in ("preferred", "dispreferred"):
            files = inputs[member][1]["options"]
            assert files, f"{loader}: `{member}` offers no file"
            assert all(name.endswith(".safetensors") for name in files)


def test_templates_are_listed_and_served(server):
    listed = server.json("/api/workflow_templates")[PACK]
    assert sorted(listed) == sorted(WORKFLOWS)
    for name in listed:
        assert server.get(f"/api/workflow_templates/{PACK}/{name}.json") == WORKFLOWS[name].read_bytes()


def test_workflow_fits_the_schema(workflow, object_info):
    unknown = {node["type"] for node in workflow_graph.executed_nodes(workflow)} - set(object_info)
    assert not unknown
    assert list(workflow_graph.widget_errors(workflow, object_info)) == []
    assert list(workflow_graph.link_errors(workflow, object_info)) == []


def test_shifted_widgets_and_slots_are_noticed(object_info):
    """The two mistakes that front ends load without a word."""
    workflow = json.loads(WORKFLOWS["chats_sd15_ksampler"].read_text(encoding="utf-8"))
    sampler = next(node for node in workflow["nodes"] if node["type"] == "KSampler")
    del sampler["widgets_values"][1]
    sampler["inputs"][0], sampler["inputs"][1] = sampler["inputs"][1], sampler["inputs"][0]
    assert len(list(workflow_graph.widget_errors(workflow, object_info))) == 1
    assert len(list(workflow_graph.link_errors(workflow, object_info))) == 1
    sampler["widgets_values"] = [1, "fixed", 30, 6, "no such sampler", "normal", 2]
    errors = " ".join(workflow_graph.widget_errors(workflow, object_info))
    assert "`sampler_name`" in errors
    assert "`denoise`" in errors


def test_the_server_objects_to_nothing_but_missing_files(workflow, server, object_info):
    """ComfyUI's own validation of each workflow; its files are renamed to ones that are not there, so nothing runs."""
    graph = workflow_graph.to_api(workflow, object_info)
    renamed = collections.defaultdict(set)
    for node_id, node in graph.items():
        for name, value in node["inputs"].items():
            if isinstance(value, str) and value.endswith(workflow_graph.FILE_SUFFIXES):
                node["inputs"][name] = f"nowhere_{value}"
                renamed[node_id].add(name)
    errors = server.queue(graph)["node_errors"]
    assert set(errors) == set(renamed)
    for node_id, found in errors.items():
        for error in found["errors"]:
            assert error["extra_info"]["input_name"] in renamed[node_id], error
            assert "nowhere_" in error["details"]


@pytest.fixture(scope="module")
def sd15_picture(server, object_info) -> np.ndarray:
    (picture,) = server.run(small(shipped("chats_sd15_ksampler", object_info)))
    return picture


def small(graph: dict[str, dict]) -> dict[str, dict]:
    return workflow_graph.set_inputs(graph, width=128, height=96)


def checkpoint_pair_graph(preferred: str, dispreferred: str) -> dict[str, dict]:
    """The shortest way to a picture: a pair of checkpoints and the one-box sampler."""
    sampling = {"seed": 20250218, "steps": 2, "cfg": 6.0, "sampler_name": "euler", "scheduler": "normal", "denoise": 1.0}
    sampling |= {"alpha": 0.5, "form": "proxy", "start_percent": 0.0, "end_percent": 1.0}
    connected = {"preferred": ["1", 0], "dispreferred": ["1", 1], "positive": ["2", 0], "null": ["3", 0], "latent_image": ["4", 0]}
    return {
        "1": {"class_type": "CHATSCheckpointPairLoader", "inputs": {"preferred": preferred, "dispreferred": dispreferred}},
        "2": {"class_type": "CLIPTextEncode", "inputs": {"text": "a red fox", "clip": ["1", 2]}},
        "3": {"class_type": "CLIPTextEncode", "inputs": {"text": "", "clip": ["1", 2]}},
        "4": {"class_type": "EmptyLatentImage", "inputs": {"width": 128, "height": 96, "batch_size": 1}},
        "5": {"class_type": "CHATSKSampler", "inputs": {**connected, **sampling}},
        "6": {"class_type": "VAEDecode", "inputs": {"samples": ["5", 0], "vae": ["1", 3]}},
        "7": {"class_type": "SaveImage", "inputs": {"images": ["6", 0], "filename_prefix": "pair"}},
    }


def test_sd15_workflow_gives_a_picture(sd15_picture):
    assert_is_a_picture(sd15_picture, width=128, height=96)


def test_sd15_workflow_uses_the_pair(server, object_info, sd15_picture):
    """Another alpha, and the two members swapped, give other pictures: a pair that has no effect would give the same."""
    graph = small(shipped("chats_sd15_ksampler", object_info))
    (other_alpha,) = server.run(workflow_graph.set_inputs(graph, alpha=1.5))
    swapped = workflow_graph.set_inputs(graph, alpha=0.5)
    (loader,) = [node["inputs"] for node in swapped.values() if node["class_type"] == "CHATSDiffusionModelPairLoader"]
    loader["preferred"], loader["dispreferred"] = loader["dispreferred"], loader["preferred"]
    (other_pair,) = server.run(swapped)
    assert mean_difference(other_alpha, sd15_picture) > 1
    assert mean_difference(other_pair, sd15_picture) > 1


def test_checkpoint_pair_and_one_box_sampler_give_the_same_picture(server, object_info, sd15_picture):
    """The same weights through other loaders and another sampler node: the picture of the first workflow."""
    graph = checkpoint_pair_graph("v1-5-pruned-emaonly-fp16.safetensors", "dispreferred.safetensors")
    workflow = shipped("chats_sd15_ksampler", object_info)
    graph["2"]["inputs"]["text"] = max((node["inputs"].get("text", "") for node in workflow.values()), key=len)
    (picture,) = server.run(graph)
    assert np.abs(picture.astype(int) - sd15_picture.astype(int)).max() <= 1


def test_img2img_workflow_changes_the_picture_or_its_masked_part(server, object_info):
    workflow = json.loads(WORKFLOWS["chats_img2img_inpaint"].read_text(encoding="utf-8"))
    (whole,) = server.run(workflow_graph.set_inputs(workflow_graph.to_api(workflow, object_info), steps=3))
    assert_is_a_picture(whole, width=128, height=96)
    for node in workflow["nodes"]:
        node["mode"] = 0  # what Ctrl+B does to the bypassed mask node
    graph = workflow_graph.set_inputs(workflow_graph.to_api(workflow, object_info), steps=3)
    (inpainted,) = server.run(graph)
    (untouched,) = server.run(without_sampling(graph))
    kept, painted = np.s_[:, :32], np.s_[:, 96:]
    assert mean_difference(inpainted[kept], untouched[kept]) < 0.2 * mean_difference(inpainted[painted], untouched[painted])
    assert mean_difference(whole[kept], untouched[kept]) > 0.5 * mean_difference(whole[painted], untouched[painted])


def without_sampling(graph: dict[str, dict]) -> dict[str, dict]:
    """The graph with its encoded picture decoded as it is."""
    (encode,) = [node_id for node_id, node in graph.items() if node["class_type"] == "VAEEncode"]
    (decode,) = [node for node in graph.values() if node["class_type"] == "VAEDecode"]
    decode["inputs"]["samples"] = [encode, 0]
    return graph


def mean_difference(one: np.ndarray, other: np.ndarray) -> float:
    """Mean distance of two pictures in steps of 0 to 255."""
    return float(np.abs(one.astype(float) - other.astype(float)).mean())


@pytest.mark.parametrize(
    ("preferred", "dispreferred", "way_out"),
    [
        ("chats_sd15_preferred.safetensors", "chats_sd15_preferred.safetensors", "choose the two members of a pair"),
        ("chats_sd15_preferred.safetensors", "truncated.safetensors", "truncated.safetensors is not a whole safetensors file"),
        ("pickled.ckpt", "chats_sd15_dispreferred.safetensors", "convert it to .safetensors first"),
    ],
    ids=["same file twice", "truncated", "pickle"],
)
def test_a_pair_that_cannot_be_used_is_refused_when_queued(server, object_info, preferred, dispreferred, way_out):
    graph = shipped("chats_sd15_ksampler", object_info)
    (loader,) = [node_id for node_id, node in graph.items() if node["class_type"] == "CHATSDiffusionModelPairLoader"]
    graph[loader]["inputs"].update(preferred=preferred, dispreferred=dispreferred)
    errors = server.queue(graph)["node_errors"]
    assert set(errors) == {loader}
    for error in errors[loader]["errors"]:
        assert way_out in error["details"]
        assert "\n" not in error["details"]
        assert "Traceback" not in error["details"]
