"""Runs of the training node for tests: a rated data set, a mini SD3 with its real small VAE, and the node on them."""

import hashlib
import io

import comfy.model_management
import comfy.model_patcher
import comfy.sd
import comfy.utils
import folder_paths
import mini_architectures
import pytest
import torch
from conftest import pack_module
from PIL import Image
from safetensors.torch import load_file
from serving import vae_weights

SIZE = 64


class Encoder(torch.nn.Module):
    """Stands for a text encoder: embeddings drawn by the text, so that prompts differ in length too."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(3), requires_grad=False)


class Clip:
    def __init__(self):
        cpu = torch.device("cpu")
        self.patcher = comfy.model_patcher.ModelPatcher(Encoder(), load_device=cpu, offload_device=cpu)
        self.encoded = []

    def tokenize(self, text):
        return text

    def encode_from_tokens_scheduled(self, text):
        self.encoded.append(text)
        seed = int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big")
        return mini_architectures.conditioning("sd3", seed, 4 + len(text) % 5)


def png(index: int) -> bytes:
    levels = torch.rand(SIZE, SIZE, 3, generator=torch.Generator().manual_seed(index))
    stream = io.BytesIO()
    Image.frombytes("RGB", (SIZE, SIZE), (levels * 255).byte().numpy().tobytes()).save(stream, "PNG")
    return stream.getvalue()


def rate(folder, prompts: int = 5, first: int = 0) -> None:
    dataset = pack_module("chats.taste.dataset").TasteDataset(folder)
    for index in range(first, first + prompts):
        left, right = (dataset.add_candidate(png(2 * index + side), f"prompt {index}")[0] for side in range(2))
        assert dataset.vote(f"{index:016x}", left, right, "left", "default")


@pytest.fixture(scope="module")
def models():
    """MODEL, CLIP and VAE as a loader gives them; never changed."""
    with torch.inference_mode():
        vae = comfy.sd.VAE(sd=vae_weights(4, latent_channels=16))
        return mini_architectures.model("sd3"), Clip(), vae


@pytest.fixture
def place(tmp_path, monkeypatch):
    """An output folder with a rated data set, and an empty loras folder."""
    monkeypatch.setattr(folder_paths, "output_directory", str(tmp_path / "output"))
    monkeypatch.setitem(folder_paths.folder_names_and_paths, "loras", ([str(tmp_path / "loras")], {".safetensors"}))
    folder_paths.filename_list_cache.pop("loras", None)
    (tmp_path / "loras").mkdir()
    rate(tmp_path / "output" / "chats" / "my taste")
    return tmp_path


@pytest.fixture
def train(pack, models, place):
    """Runs the node, as ComfyUI does, in inference mode; settings that are not stated are these."""
    node = pack_module("nodes.training.train_lora_pair").CHATSTrainLoRAPair
    usual = dict(zip(("model", "clip", "vae"), models, strict=True)) | dict(
        dataset="my taste",
        name="pair",
        rank=2,
        layers="attention",
        steps=4,
        learning_rate=1e-2,
        accumulate=1,
        beta=50.0,
        null_prompt_prob=0.5,
        resolution=SIZE,
        seed=1,
        minutes=0,
    )

    def run(**settings):
        with torch.inference_mode():
            return node.execute(**usual | settings).args

    return run


def files(place, name: str = "pair") -> list[bytes]:
    members = ("preferred", "dispreferred")
    return [(place / "loras" / f"{name}_{member}.safetensors").read_bytes() for member in members]


def assert_equal_pairs(place, name: str, other: str) -> None:
    """Equal weights and metadata; only the titles differ."""
    read_metadata = pack_module("chats.pair").read_metadata
    for member in ("preferred", "dispreferred"):
        ours, theirs = (place / "loras" / f"{each}_{member}.safetensors" for each in (name, other))
        assert read_metadata(ours) == read_metadata(theirs)
        expected = load_file(theirs)
        assert all(torch.equal(value, expected[key]) for key, value in load_file(ours).items())


def assert_equal_runs(place, name: str, other: str) -> None:
    """Equal states: weights and all that the next step depends on."""
    ours, theirs = (load_file(state_file(place, each)) for each in (name, other))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(value, theirs[key]) for key, value in ours.items())


def state_file(place, name: str = "pair"):
    return place / "output" / "chats" / "my taste" / "runs" / name / "state.safetensors"


def stop_after(step: int, monkeypatch) -> None:
    """Presses Cancel when the bar of the steps stands at ``step``."""

    def hook(value, total, preview, **_):
        if preview is not None and value == step:
            comfy.model_management.interrupt_current_processing(True)

    monkeypatch.setattr(comfy.utils, "PROGRESS_BAR_HOOK", hook)
    monkeypatch.setattr(pack_module("nodes.training.reports"), "SECONDS_BETWEEN_REPORTS", 0.0)
