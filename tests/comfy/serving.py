"""A real ComfyUI server with the pack in its custom_nodes/ and models of random weights under the workflows' file
names."""

from __future__ import annotations

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
import urllib.parse
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import folder_paths
import mini
import numpy as np
import pytest
import running
import torch
from conftest import pack_module
from PIL import Image
from safetensors.torch import save_file

ROOT = Path(__file__).resolve().parents[2]
COMFYUI = Path(folder_paths.__file__).resolve().parent
PACK = "ComfyUI-CHATS"
START_SECONDS, RUN_SECONDS = 300, 120
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


def vae_weights(seed: int, latent_channels: int = 4) -> dict[str, torch.Tensor]:
    """Random weights of TAESD, a VAE of 5 MB that ComfyUI takes for any SD1.5 checkpoint, and with 16 channels for
    SD3.5's."""
    from comfy.taesd.taesd import TAESD

    state = mini.random_weights(TAESD(latent_channels=latent_channels), seed)
    decoder = [key for key in state if key.startswith("taesd_decoder.")]
    *_, last_weight, last_bias = sorted(decoder, key=lambda key: (int(key.split(".")[1]), key.endswith("bias")))
    # Medium grey with some contrast: as they fall, the colours run out of the range of a PNG.
    output = {last_weight: state[last_weight] * VAE_CONTRAST, last_bias: torch.full_like(state[last_bias], 0.5)}
    return {**state, **output, "vae_scale": torch.tensor(1.0), "vae_shift": torch.tensor(0.0)}


def write_models(models: Path) -> None:
    """A pair as diffusion models, the same pair as checkpoints, LoRAs, and files that nobody can load."""
    unets, checkpoints = models / "diffusion_models", models / "checkpoints"
    unets.mkdir(parents=True)
    checkpoints.mkdir()
    preferred, dispreferred = mini.weights("sd15", 1), mini.weights("sd15", 2)
    save_file(half(preferred), unets / "chats_sd15_preferred.safetensors")
    save_file(half(dispreferred), unets / "chats_sd15_dispreferred.safetensors")
    clip_l = half(text_encoder_weights(3))
    whole = half(preferred, "model.diffusion_model.") | half(clip_l, "cond_stage_model.transformer.")
    whole |= half(vae_weights(4), "first_stage_model.")
    save_file(whole, checkpoints / "v1-5-pruned-emaonly-fp16.safetensors")
    # The same SD1.5 under SDXL's name: ComfyUI sees by the weights what a file is, and the graph is the same for both.
    os.link(checkpoints / "v1-5-pruned-emaonly-fp16.safetensors", checkpoints / "sd_xl_base_1.0.safetensors")
    for member in ("preferred", "dispreferred"):
        os.link(unets / f"chats_sd15_{member}.safetensors", unets / f"chats_sdxl_{member}.safetensors")
    # The pair loader takes CLIP and VAE from the preferred file, so this one does without.
    save_file(half(dispreferred, "model.diffusion_model."), checkpoints / "dispreferred.safetensors")
    content = (unets / "chats_sd15_preferred.safetensors").read_bytes()
    (unets / "truncated.safetensors").write_bytes(content[: len(content) // 2])
    torch.save({"weight": torch.zeros(1)}, unets / "pickled.ckpt")
    write_loras(models / "loras")
    write_sd35(models, clip_l)
    write_z_image(models)


def write_loras(loras: Path) -> None:
    """A pair of LoRAs on the base, and one that leads from the preferred model, with the metadata that the trainer
    writes."""
    loras.mkdir()
    pair, base = pack_module("chats.pair"), mini.model("sd15", 1)
    made = [("my-pair_preferred", "preferred"), ("my-pair_dispreferred", "dispreferred")]
    made += [("chats_sd15_dispreferred_lora_rank32", "dispreferred")]
    made += [("my-pair-sdxl_preferred", "preferred"), ("my-pair-sdxl_dispreferred", "dispreferred")]
    for seed, (name, member) in enumerate(made, start=5):
        metadata = pair.PairMetadata(member, pair_id=name.split("_")[0], prediction_type="epsilon")
        pair.write_member(loras / f"{name}.safetensors", running.lora(base, seed), metadata)

    stated = pack_module("chats.distilled").DistilledMetadata(pair_id="my-pair-sdxl")
    pair.write_member(loras / "my-pair-sdxl-cfg1.safetensors", running.lora(base, 10), stated)


def write_sd35(models: Path, clip_l: dict[str, torch.Tensor]) -> None:
    """A mini SD3.5 pair under the flow workflow's names, with a small VAE and encoders of the real sizes: CLIP-L of
    random weights, CLIP-G and T5-XXL (6 GB together) of zeros, which take no room on a disk."""
    import comfy.sdxl_clip
    import comfy.text_encoders.sd3_clip
    from comfy.clip_model import CLIPTextModel
    from comfy.ops import disable_weight_init
    from comfy.text_encoders.t5 import T5

    for seed, member in enumerate(("preferred", "dispreferred"), start=1):
        save_file(half(mini.weights("sd3_5", seed)), models / "diffusion_models" / f"chats_sd35_{member}.safetensors")
    for folder in ("text_encoders", "vae"):
        (models / folder).mkdir()
    save_file(half(vae_weights(4, latent_channels=16)), models / "vae" / "sd3.5_vae.safetensors")
    save_file(clip_l, models / "text_encoders" / "clip_l.safetensors")
    sizes = [
        ("clip_g", CLIPTextModel, comfy.sdxl_clip, "clip_config_bigg.json", torch.float16),
        ("t5xxl_fp8_e4m3fn", T5, comfy.text_encoders.sd3_clip, "t5_config_xxl.json", torch.float8_e4m3fn),
    ]
    for name, encoder, module, config, dtype in sizes:
        config = json.loads(Path(module.__file__).with_name(config).read_text(encoding="utf-8"))
        state = encoder(config, dtype, "meta", disable_weight_init).state_dict()
        shapes = {key: tensor.shape for key, tensor in state.items()}
        mini.write_zeros(models / "text_encoders" / f"{name}.safetensors", shapes, dtype)


def write_z_image(models: Path) -> None:
    """What stands under the Z-Image workflow's names: a mini flow transformer of SD3's kind that takes CLIP-L's
    encodings. ComfyUI sees by the weights what a file is, and the graph is the same; Z-Image's own width of 3840 and
    its encoder of 4 billion weights would take minutes."""
    transformer = mini.sd3_weights(1, context=768, pooled=768)
    save_file(half(transformer), models / "diffusion_models" / "z_image_bf16.safetensors")
    os.link(models / "text_encoders" / "clip_l.safetensors", models / "text_encoders" / "qwen_3_4b.safetensors")
    os.link(models / "vae" / "sd3.5_vae.safetensors", models / "vae" / "ae.safetensors")


def write_base_directory(base: Path, models: bool) -> None:
    """What a user's folder holds: the pack, the models, an input picture."""
    ignored = shutil.ignore_patterns(".*", "__pycache__", "tests", "benchmarks")
    shutil.copytree(ROOT, base / "custom_nodes" / PACK, ignore=ignored)
    if models:
        write_models(base / "models")
    (base / "input").mkdir()
    columns, rows = np.meshgrid(np.arange(128), np.arange(96))
    picture = np.stack([columns * 2, rows * 2, 255 - columns], axis=-1).astype(np.uint8)
    alpha = np.where(columns < 64, 255, 0).astype(
        np.uint8
    )  # ComfyUI's mask is where a picture is transparent: the right half
    Image.fromarray(np.dstack([picture, alpha])).save(base / "input" / "example.png")


def python_path(scratch: Path) -> str:
    """A path with a folder of no templates, which older ComfyUIs want (0.3.64 does), whichever templates package is
    installed. Without the list, their front end opens no other template either."""
    if "legacy_templates_path" not in (COMFYUI / "app" / "frontend_management.py").read_text(encoding="utf-8"):
        package = scratch / "site" / "comfyui_workflow_templates"
        (package / "templates").mkdir(parents=True)
        (package / "templates" / "index.json").write_text("[]", encoding="utf-8")
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
    base: Path

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

    def post(self, path: str, content: object, user: str | None = None) -> bytes:
        """As a user of a server with several."""
        headers = {"Content-Type": "application/json"} | ({"Comfy-User": user} if user else {})
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}{path}", json.dumps(content).encode(), headers)
        with urllib.request.urlopen(request, timeout=30) as response:
            return response.read()

    def queue(self, graph: dict[str, dict]) -> dict:
        """The answer to `POST /prompt`, which has the status 400 when no node can run."""
        body = json.dumps({"prompt": graph}).encode()
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}/prompt", body, {"Content-Type": "application/json"}
        )
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
        place = urllib.parse.urlencode({"filename": filename, "subfolder": subfolder, "type": type})
        content = self.get(f"/view?{place}")
        with Image.open(io.BytesIO(content)) as image:
            assert image.format == "PNG"
            return np.asarray(image.convert("RGB"))


@contextlib.contextmanager
def running_server(scratch: Path, *arguments: str, models: bool = True) -> Iterator[Server]:
    """A server on a free port with its base directory in ``scratch``; it ends with the block, whatever happens in
    it."""
    write_base_directory(scratch / "base", models)
    port = free_port()
    command = [sys.executable, "main.py", "--cpu", "--port", str(port), "--base-directory", str(scratch / "base")]
    command += ["--database-url", "sqlite:///:memory:", "--disable-auto-launch", "--disable-api-nodes", *arguments]
    # One thread: the models are tiny, and on a busy machine threads spend far longer waiting for each other.
    environment = {**os.environ, "PYTHONPATH": python_path(scratch), "OMP_NUM_THREADS": "1"}
    log = scratch / "log.txt"
    with log.open("wb") as output:
        process = subprocess.Popen(command, cwd=COMFYUI, env=environment, stdout=output, stderr=subprocess.STDOUT)
        try:
            running = Server(port, process, log, scratch / "base")
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
