"""Where a base comes from: folders, hub repositories, single checkpoints; what is refused, and that nothing goes online
unasked."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import tiny_pipelines
import torch
from safetensors.torch import save_file

from chats_train.families import SourceError, adapter_of, load_family
from chats_train.families.sources import wanted_files
from chats_train.settings.facts import FAMILIES

ROOT = Path(__file__).resolve().parents[2]
PROMPTS = ["a cat", "two dogs on a roof"]


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    root = tmp_path_factory.mktemp("bases")
    return {name: tiny_pipelines.save_pipeline(name, root / name) for name in FAMILIES}


def test_errors_name_the_setting_and_the_way_out(bases, tmp_path):
    with pytest.raises(SourceError, match="`family` is `sd2`; known are sd15, sdxl, sd3, flux"):
        load_family("sd2", str(bases["sd15"]))
    with pytest.raises(SourceError, match="nothing here`, which is not there; correct the path, or give a "):
        load_family("sd15", str(tmp_path / "nothing here"))
    with pytest.raises(SourceError, match=r"no model_index\.json"):
        load_family("sd15", str(tmp_path))
    with pytest.raises(SourceError, match="no folder `unet`"):
        load_family("sd15", str(bases["flux"]))
    with pytest.raises(SourceError, match="SD3Transformer2DModel as its transformer, `family` flux"):
        load_family("flux", str(bases["sd3"]))
    (tmp_path / "base.ckpt").write_bytes(b"\x80\x04")
    with pytest.raises(SourceError, match="can run code"):
        load_family("sd15", str(tmp_path / "base.ckpt"))
    (tmp_path / "cut.safetensors").write_bytes(b"\x10\x00\x00\x00\x00\x00\x00\x00{")
    with pytest.raises(SourceError, match="not a whole safetensors file"):
        load_family("sd15", str(tmp_path / "cut.safetensors"))


def test_pickled_weights_in_a_folder_are_refused(bases, tmp_path):
    copy = shutil.copytree(bases["sd15"], tmp_path / "copy")
    next((copy / "text_encoder").glob("*.safetensors")).rename(copy / "text_encoder" / "pytorch_model.bin")
    with pytest.raises(SourceError, match="never opened"):
        load_family("sd15", str(copy)).encode_prompt(["a"])


def test_a_half_precision_variant_is_taken_where_there_is_nothing_else(bases, tmp_path):
    copy = shutil.copytree(bases["sd15"], tmp_path / "copy")
    (copy / "unet" / "diffusion_pytorch_model.safetensors").rename(
        copy / "unet" / "diffusion_pytorch_model.fp16.safetensors"
    )
    (copy / "text_encoder" / "model.safetensors").rename(copy / "text_encoder" / "model.fp16.safetensors")
    ours, theirs = load_family("sd15", str(copy)), load_family("sd15", str(bases["sd15"]))
    assert torch.equal(ours.load_denoiser().conv_in.weight, theirs.load_denoiser().conv_in.weight)
    assert torch.equal(ours.null_prompt()["tokens"], theirs.null_prompt()["tokens"])


def test_nothing_goes_online(bases, tmp_path):
    sources = [(name, str(folder), {}) for name, folder in bases.items()]
    tokenizer = tiny_pipelines.save_clip_tokenizer(tmp_path / "tokenizer")
    for name in ("sd15", "sdxl"):
        save_file(tiny_pipelines.native_checkpoint(name, bases[name]), tmp_path / f"{name}.safetensors")
        sources.append(
            (name, str(tmp_path / f"{name}.safetensors"), {"configs": str(bases[name]), "tokenizer": str(tokenizer)})
        )
    # Any look at the network, even one that is caught and retried, is counted.
    code = f"""
import socket
looks = []
def refuse(*args, **kwargs):
    looks.append(args)
    raise OSError("no network")
socket.getaddrinfo = socket.create_connection = socket.socket.connect = refuse
import torch
from chats_train.families import load_family
for name, path, options in {sources!r}:
    family = load_family(name, path, **options)
    family.load_denoiser(), family.null_prompt(), family.encode_image(torch.zeros(1, 3, 32, 32)), family.fingerprint
print(len(looks))
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.stdout.split() == ["0"], done.stderr


def test_of_a_hub_repository_only_what_is_read_is_fetched():
    names = [
        "model_index.json",
        "sd_xl_base_1.0.safetensors",
        "unet/config.json",
        "unet/diffusion_pytorch_model.safetensors",
        "unet/diffusion_pytorch_model.fp16.safetensors",
        "unet/openvino_model.bin",
        "vae/diffusion_pytorch_model.fp16.safetensors",
        "vae_1_0/diffusion_pytorch_model.safetensors",
        "tokenizer/vocab.json",
        "tokenizer/merges.txt",
        "scheduler/scheduler_config.json",
        "text_encoder/pytorch_model.bin",
    ]
    assert wanted_files(names, ["unet", "vae", "text_encoder", "tokenizer"]) == [
        "model_index.json",
        "unet/config.json",
        "unet/diffusion_pytorch_model.safetensors",
        "vae/diffusion_pytorch_model.fp16.safetensors",
        "tokenizer/vocab.json",
        "tokenizer/merges.txt",
        "scheduler/scheduler_config.json",
    ]


def test_of_a_hub_repository_all_shards_of_one_precision_are_fetched():
    shards = [
        "unet/diffusion_pytorch_model.{}-0000{}-of-00002.safetensors",
        "unet/diffusion_pytorch_model.safetensors.index.{}.json",
    ]
    names = {
        kind: ["unet/config.json", *(shards[0].format(kind, number) for number in (1, 2)), shards[1].format(kind)]
        for kind in ("fp16", "bf16")
    }
    assert wanted_files([*names["fp16"], *names["bf16"]], ["unet"]) == [
        "model_index.json",
        *names["fp16"],
        "unet/config.json",
    ]
    assert wanted_files(names["bf16"], ["unet"]) == ["model_index.json", *names["bf16"]]


def test_importing_the_families_is_light():
    code = (
        "import sys, chats_train.families; print([m for m in ('diffusers', 'transformers', 'accelerate') if m "
        "in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# Single files.


@pytest.mark.parametrize("name", ["sd15", "sdxl"])
def test_a_checkpoint_is_the_same_base_as_its_folder(bases, tmp_path, name):
    folder = load_family(name, str(bases[name]))
    save_file(tiny_pipelines.native_checkpoint(name, bases[name]), tmp_path / "base.safetensors")
    tokenizer = tiny_pipelines.save_clip_tokenizer(tmp_path / "tokenizer")
    file = load_family(name, str(tmp_path / "base.safetensors"), tokenizer=str(tokenizer), configs=str(bases[name]))
    ours, theirs = file.encode_prompt(PROMPTS), folder.encode_prompt(PROMPTS)
    for key in theirs:
        torch.testing.assert_close(ours[key], theirs[key])
    pixels = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    torch.testing.assert_close(file.encode_image(pixels), folder.encode_image(pixels))
    loaded, expected = file.load_denoiser().state_dict(), folder.load_denoiser().state_dict()
    assert loaded.keys() == expected.keys()
    assert [key for key in expected if not torch.equal(loaded[key], expected[key])] == []
    assert file.parameter_counts() == folder.parameter_counts()
    assert file.null_prompt_kind == folder.null_prompt_kind


@pytest.mark.parametrize(
    ("dropped", "message"),
    [
        ("first_stage_model.", "holds no `vae`; set `encoders`"),
        ("first_stage_model.encoder.conv_in.weight", "lacks weights of its vae"),
        ("cond_stage_model.transformer.text_model.final_layer_norm.bias", "lacks weights of its text_encoder"),
        ("model.diffusion_model.out.2.bias", r"has no `out\.2\.bias`"),
    ],
)
def test_a_checkpoint_that_is_not_whole_is_refused(bases, tmp_path, dropped, message):
    tensors = tiny_pipelines.native_checkpoint("sd15", bases["sd15"])
    save_file(
        {key: value for key, value in tensors.items() if not key.startswith(dropped)}, tmp_path / "base.safetensors"
    )

    def load():
        family = load_family("sd15", str(tmp_path / "base.safetensors"), configs=str(bases["sd15"]))
        return family.vae, family.text_encoders

    with pytest.raises(SourceError, match=message):
        load()


def test_markers_of_a_checkpoint_tell_its_prediction(bases, tmp_path):
    tensors = tiny_pipelines.native_checkpoint("sdxl", bases["sdxl"]) | {
        "v_pred": torch.tensor([]),
        "ztsnr": torch.tensor([]),
    }
    save_file(tensors, tmp_path / "v.safetensors")
    family = load_family("sdxl", str(tmp_path / "v.safetensors"), configs=str(bases["sdxl"]))
    assert (family.prediction_type, family.schedule.zero_terminal_snr) == ("v_prediction", True)


def test_a_missing_tokenizer_says_where_to_find_one(bases, tmp_path, monkeypatch):
    save_file(tiny_pipelines.native_checkpoint("sd15", bases["sd15"]), tmp_path / "base.safetensors")
    monkeypatch.setenv("COMFYUI_PATH", str(tmp_path / "none"))
    family = load_family("sd15", str(tmp_path / "base.safetensors"), configs=str(bases["sd15"]))
    with pytest.raises(SourceError, match="set `tokenizer` to a folder"):
        family.encode_prompt(["a"])
    tiny_pipelines.save_clip_tokenizer(tmp_path / "none" / "comfy" / "sd1_tokenizer")
    assert family.encode_prompt(["a"])["tokens"].shape == (1, 77, 24)


PUBLISHED = {
    # Keys of the UNet as published, and parameters of each part.
    "sd15": (686, {"unet": 859_520_964, "vae": 83_653_863, "text_encoder": 123_060_480}),
    "sdxl": (
        1680,
        {"unet": 2_567_463_684, "vae": 83_653_863, "text_encoder": 123_060_480, "text_encoder_2": 694_659_840},
    ),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_bundled_configs_are_those_of_the_published_models(name):
    from accelerate import init_empty_weights

    from chats_train.families.single_file import CONFIGS

    classes, (unet_keys, counts) = adapter_of(FAMILIES[name]).part_classes(), PUBLISHED[name]
    for part, count in counts.items():
        config = json.loads((CONFIGS / name / part / "config.json").read_text())
        cls = classes[part]
        with init_empty_weights():
            module = cls.from_config(config) if hasattr(cls, "from_config") else cls(cls.config_class(**config))
        assert sum(p.numel() for p in module.parameters()) == count, part
        if part == "unet":
            assert len(module.state_dict()) == unet_keys
