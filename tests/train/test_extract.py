"""`extract` on tiny real models: what its LoRAs give back, what it says of them, what it refuses, and what memory it
takes."""

import csv
import re
import subprocess
import sys
from pathlib import Path

import pytest
import tiny_pipelines
import torch
from safetensors.torch import load_file, save_file

from chats.pair import PairError, PairMetadata, check_files, read_header, read_metadata
from chats_train import cli
from chats_train.extraction.extract import Truncation, extract
from chats_train.extraction.table import overall_energy, summary
from chats_train.families import load_family
from chats_train.inspection import describe
from chats_train.layouts.carriers import carriers
from chats_train.layouts.flux_blocks import flux_layout
from chats_train.layouts.formats import file_format
from chats_train.layouts.places import to_native
from chats_train.runs.pair_files import export_full
from chats_train.settings.facts import FAMILIES
from chats_train.support.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
FULL = Truncation(rank=10**6, energy=None, dtype="fp32")


# SD3's table of positions does not train, and Z-Image's padding is no layer's, so ComfyUI would not patch it.
NOT_CARRIED = ("pos_embed.pos_embed", "x_pad_token", "cap_pad_token")


def perturbed(state, seed, scale=0.05, keys="") -> dict[str, torch.Tensor]:
    """Weights a little off, all of them or those whose key matches, but for what no LoRA carries."""
    generator = torch.Generator().manual_seed(seed)
    noise = {key: torch.randn(value.shape, generator=generator) * scale for key, value in state.items()}
    return {
        key: value + noise[key] if re.search(keys, key) and key not in NOT_CARRIED else value
        for key, value in state.items()
    }


def native(family, state) -> dict[str, torch.Tensor]:
    return to_native(state, file_format(family).layout(state))


def write(path, family, state, layout) -> Path:
    """A file in one of the layouts that ComfyUI loads."""
    if layout != "diffusers":
        prefix = "model.diffusion_model." if layout == "checkpoint" else ""
        state = {prefix + key: value for key, value in native(family, state).items()}
    if layout == "checkpoint":
        state["first_stage_model.other"] = torch.zeros(3)
    save_file({key: value.contiguous() for key, value in state.items()}, path)
    return path


def applied(weights, lora) -> dict[str, torch.Tensor]:
    """Native weights with a LoRA on them, and every key of it used."""
    result, used = dict(weights), set()
    norms = {f"transformer.{key.removesuffix('.weight')}": place.key for key, place in flux_layout(FLUX_NORMS).items()}
    for key in lora:
        name, _, end = key.partition(".lora_up.")
        if end:
            up, down, alpha = key, f"{name}.lora_down.weight", f"{name}.alpha"
            scale = lora[alpha].item() / lora[down].shape[0]
            target = f"{name.removeprefix('diffusion_model.')}.weight"
            change = (lora[up].double().flatten(1) @ lora[down].double().flatten(1)).reshape(
                weights[target].shape
            ) * scale
            used |= {up, down, alpha}
        elif key.endswith((".diff", ".diff_b")):
            name, _, end = key.rpartition(".")
            module = name.removeprefix("diffusion_model.")
            target = (
                norms.get(name)
                or f"{module}.bias" * (end == "diff_b")
                or next(key for key in (module, f"{module}.weight", f"{module}.scale") if key in weights)
            )
            change = lora[key].double()
            used.add(key)
        else:
            continue
        result[target] = (result[target].double() + change).float()
    assert used == lora.keys()
    return result


FLUX_NORMS = [
    *(f"transformer_blocks.0.attn.norm_{which}.weight" for which in ("q", "k", "added_q", "added_k")),
    *(f"single_transformer_blocks.{block}.attn.norm_{which}.weight" for block in (0, 1) for which in ("q", "k")),
]
LAYOUTS = [
    *((family, "native", "native") for family in FAMILIES),
    *((family, "diffusers", "diffusers") for family in FAMILIES),
    ("sdxl", "checkpoint", "native"),
    ("sd3", "native", "diffusers"),
    ("flux", "diffusers", "checkpoint"),
]


@pytest.fixture(scope="module")
def states():
    """The preferred and the dispreferred state of each family, in diffusers' names."""
    preferred = {family: tiny_pipelines.denoiser(family, 1).state_dict() for family in FAMILIES}
    return {family: (state, perturbed(state, 2)) for family, state in preferred.items()}


@pytest.mark.parametrize(("family", "first", "second"), LAYOUTS)
def test_full_rank_gives_the_dispreferred_back(states, tmp_path, family, first, second):
    paths = [
        write(tmp_path / f"{i}.safetensors", family, states[family][i], layout)
        for i, layout in enumerate((first, second))
    ]
    ((lora,), _) = extract(*paths, None, FULL, tmp_path, progress=False)
    preferred, dispreferred = (native(family, state) for state in states[family])
    result = applied(preferred, load_file(lora.path))
    assert result.keys() == dispreferred.keys()
    for key, value in dispreferred.items():
        torch.testing.assert_close(result[key], value, rtol=0, atol=1e-6, msg=key)
    assert len(lora.layers) == sum(not torch.equal(preferred[key], dispreferred[key]) for key in preferred) > 20
    assert overall_energy(lora.layers) > 1 - 1e-12


def test_a_base_gives_two_loras(states, tmp_path):
    state = states["sd15"][0]
    members = {"base": state, "preferred": perturbed(state, 3), "dispreferred": perturbed(state, 4)}
    paths = {
        name: write(tmp_path / f"tiny_{name}.safetensors", "sd15", weights, "native")
        for name, weights in members.items()
    }
    loras, warnings = extract(
        paths["preferred"], paths["dispreferred"], paths["base"], FULL, tmp_path / "out", progress=False
    )
    assert warnings == []
    assert [lora.path.name for lora in loras] == [
        f"tiny_{member}_lora_rank1000000.safetensors" for member in ("preferred", "dispreferred")
    ]
    for lora in loras:
        result, expected = applied(native("sd15", state), load_file(lora.path)), native("sd15", members[lora.member])
        assert max((result[key] - expected[key]).abs().max() for key in expected) < 1e-6
        assert read_metadata(lora.path).base_name == "tiny_base.safetensors"
    # The two are a pair, and no stranger's.
    found, warnings = check_files(*(lora.path for lora in loras))
    assert (found.member, warnings) == ("preferred", [])


@pytest.mark.parametrize(
    "truncation", [Truncation(3, None), Truncation(None, 0.9), Truncation(4, 0.9, "fp32")], ids=str
)
def test_the_table_tells_the_truth(states, tmp_path, truncation):
    paths = [write(tmp_path / f"{i}.safetensors", "sd3", state, "diffusers") for i, state in enumerate(states["sd3"])]
    ((lora,), _) = extract(*paths, None, truncation, tmp_path, progress=False)
    preferred, dispreferred = (native("sd3", state) for state in states["sd3"])
    result, file = applied(preferred, load_file(lora.path)), load_file(lora.path)
    rows = {row["key"]: row for row in csv.DictReader(lora.table.read_text().splitlines())}
    lost = total = 0.0
    for key, target in dispreferred.items():
        delta = target.double() - preferred[key].double()
        if not delta.any():
            assert key not in rows
            continue
        row, residual = rows.pop(key), (target.double() - result[key].double()).norm()
        assert float(row["relative_error"]) == pytest.approx((residual / delta.norm()).item(), abs=1e-5)
        assert float(row["change"]) == pytest.approx((delta.norm() / preferred[key].double().norm()).item())
        lost, total = lost + residual**2, total + delta.norm() ** 2
        if row["form"] == "factors":
            energies = torch.linalg.svdvals(delta.flatten(1)).square()
            rank = int(row["rank"])
            assert float(row["retained_energy"]) == pytest.approx(
                (energies[:rank].sum() / energies.sum()).item(), abs=1e-6
            )
            assert file[f"diffusion_model.{key.removesuffix('.weight')}.lora_down.weight"].shape[0] == rank
            shares = (energies.cumsum(0) / energies.sum() < (truncation.energy or 2)).sum().item() + 1
            assert rank == min(len(energies), truncation.rank or 10**6, shares)
        else:
            assert float(row["relative_error"]) < 1e-6
    assert rows == {}
    assert overall_energy(lora.layers) == pytest.approx(1 - (lost / total).item(), abs=1e-6)
    first, *_ = summary(lora.layers, len(lora.origin.shapes), lora.table.name)
    assert f"{overall_energy(lora.layers):.2%} of the difference's energy" in first
    assert {value.dtype for key, value in file.items() if ".lora_" in key} == {
        torch.float32 if truncation.dtype == "fp32" else torch.float16
    }


def test_only_what_differs_is_written(states, tmp_path):
    state = states["sd15"][0]
    other = perturbed(state, 5, keys=r"attn2\.to_k|norm1\.bias")
    paths = [
        write(tmp_path / f"{i}.safetensors", "sd15", weights, "native") for i, weights in enumerate((state, other))
    ]
    ((lora,), _) = extract(*paths, None, Truncation(2, None), tmp_path, progress=False)
    names = {key for key in load_file(lora.path)}
    assert {name.rsplit(".", 3 if ".lora_" in name else 1)[-1] for name in names} >= {"diff_b", "alpha"}
    assert all("attn2.to_k" in name or name.endswith((".in_layers.0.diff_b", "norm1.diff_b")) for name in names)
    save_file(load_file(paths[0]), tmp_path / "copy.safetensors")
    with pytest.raises(UserError, match=r"whose weights are those of 0\.safetensors; nothing to extract"):
        extract(paths[0], tmp_path / "copy.safetensors", None, FULL, tmp_path / "out", progress=False)


def test_what_comfyui_would_not_patch_is_said(states, tmp_path, capsys):
    state = dict(states["sd3"][0])
    other = perturbed(state, 6, keys="context_embedder")
    other["pos_embed.pos_embed"] = other["pos_embed.pos_embed"] + 1
    paths = [write(tmp_path / f"{i}.safetensors", "sd3", weights, "native") for i, weights in enumerate((state, other))]
    arguments = [
        "--preferred",
        str(paths[0]),
        "--dispreferred",
        str(paths[1]),
        "--energy",
        "0.5",
        "--output",
        str(tmp_path),
    ]
    assert cli.main(["extract", *arguments]) == 0
    said = capsys.readouterr().out
    assert "the difference of 1 is NOT carried, since ComfyUI patches no such weight: pos_embed" in said
    table = list(csv.DictReader((tmp_path / "1_dispreferred_lora_energy0.5.csv").read_text().splitlines()))
    assert [row["form"] for row in table if row["key"] == "pos_embed"] == ["not carried"]
    assert not any("pos_embed" in key for key in load_file(tmp_path / "1_dispreferred_lora_energy0.5.safetensors"))
    # It is most of the difference, and counts as lost.
    assert re.search(r", \d\.\d\d% of the difference's energy", said)


def test_a_parameter_of_a_block_is_not_carried():
    shapes = {
        "a.modulation": (1, 6, 8),
        "a.lin.weight": (8, 8),
        "a.lin.bias": (8,),
        "a.norm.scale": (8,),
        "alone.bias": (8,),
    }
    names = {key: carrier and carrier.name for key, carrier in carriers(shapes).items()}
    assert names == {
        "a.modulation": None,
        "a.lin.weight": "diffusion_model.a.lin",
        "a.lin.bias": "diffusion_model.a.lin.diff_b",
        "a.norm.scale": "diffusion_model.a.norm.scale.diff",
        "alone.bias": "diffusion_model.alone.bias.diff",
    }


# Metadata.

STATED = dict(
    pair_id="p",
    prediction_type="flow",
    null_prompt="zeros",
    null_prompt_prob=0.5,
    alpha=0.6,
    guidance_scale=4.0,
    resolution=512,
    step=9,
)


@pytest.fixture
def stated(states, tmp_path):
    """A pair as the trainer exports it."""
    paths = []
    for member, state in zip(("preferred", "dispreferred"), states["sd3"], strict=True):
        paths.append(tmp_path / f"run_{member}.safetensors")
        metadata = PairMetadata(member, base_name="b", base_sha256="d", **STATED)
        export_full(paths[-1], "sd3", state, metadata, title="run")
    return paths


def test_metadata_is_kept(stated, tmp_path):
    ((lora,), warnings) = extract(*stated, None, Truncation(2, None), tmp_path, progress=False)
    assert (lora.path.name, warnings) == ("run_dispreferred_lora_rank2.safetensors", [])
    base = load_family("sd3", str(stated[0]), encoders=str(tiny_pipelines.save_pipeline("sd3", tmp_path / "base")))
    assert read_metadata(lora.path) == PairMetadata(
        "dispreferred", base_name=stated[0].name, base_sha256=base.base_sha256, **STATED
    )
    header = read_header(lora.path)
    assert header["modelspec.architecture"] == "stable-diffusion-3-medium/lora"
    assert header["modelspec.resolution"] == "512x512"
    assert header["modelspec.description"].endswith(", rank 2, fp16")
    lines = describe(lora.path)
    count = sum(layer.form == "factors" for layer in lora.layers)
    plain = len(lora.layers) - count
    told = (
        f"LoRA of rank 2 for SD3 (`diffusion_model.` keys), {count} modules, {count} of them with alpha, "
        f"{plain} plain differences"
    )
    assert lines[0] == f"{lora.path.name}: {told}"
    assert "  the dispreferred member of the pair p" in lines


def test_files_without_metadata_get_a_pair_of_their_own(states, tmp_path):
    for folder in ("unet_win", "unet_lose"):
        (tmp_path / folder).mkdir()
    # As the published pairs come: two files of one name.
    name = "diffusion_pytorch_model.safetensors"
    paths = [
        write(tmp_path / folder / name, "sd15", states["sd15"][i], "diffusers")
        for i, folder in enumerate(("unet_win", "unet_lose"))
    ]
    found = []
    for output in ("one", "two"):
        ((lora,), _) = extract(*paths, None, Truncation(1, None), tmp_path / output, progress=False)
        assert lora.path.name == "diffusion_pytorch_model_dispreferred_lora_rank1.safetensors"
        found.append(lora.path)
    metadata = read_metadata(found[0])
    assert (metadata.member, metadata.base_name, metadata.null_prompt, len(metadata.pair_id)) == (
        "dispreferred",
        name,
        None,
        32,
    )
    assert read_metadata(found[1]) == metadata
    first, second = map(load_file, found)
    assert first.keys() == second.keys()
    assert [key for key in first if not torch.equal(first[key], second[key])] == []


# What is refused, and what is left alone.


def refused(match, *paths, base=None, truncation=FULL, error=(UserError, PairError)):
    """One sentence, and nothing written."""
    output = paths[0].parent / "out"
    with pytest.raises(error, match=match) as raised:
        extract(*paths, base, truncation, output, progress=False)
    assert "\n" not in str(raised.value)
    assert not output.exists()


def test_other_architectures_are_refused(states, tmp_path):
    sd15, sdxl = (
        write(tmp_path / f"{family}.safetensors", family, states[family][0], "native") for family in ("sd15", "sdxl")
    )
    refused(
        r"`preferred` is sd15\.safetensors .* and `dispreferred` is sdxl\.safetensors .*: `[\w.]+` is .* in the one ",
        sd15,
        sdxl,
    )
    wider = dict(states["sd15"][1])
    wider["conv_in.weight"] = torch.zeros(16, 9, 3, 3)
    inpainting = write(tmp_path / "inpaint.safetensors", "sd15", wider, "diffusers")
    refused(
        r"`input_blocks\.0\.0\.weight` is \[16, 4, 3, 3\] in the one and \[16, 9, 3, 3\] in the other", sd15, inpainting
    )
    other = write(tmp_path / "other.safetensors", "sd15", states["sd15"][1], "native")
    refused("`base` is sdxl", sd15, other, base=sdxl)


def test_wrong_files_are_refused(states, tmp_path, stated):
    first, second = (
        write(tmp_path / f"{i}.safetensors", "sd15", state, "native") for i, state in enumerate(states["sd15"])
    )
    refused("`preferred` and `dispreferred` are both 0", first, first)
    refused("`base` and `dispreferred` are both 1", first, second, base=second)
    refused("which is the dispreferred member of its pair; choose a preferred member", stated[1], stated[0])
    refused(r"nowhere\.safetensors is not there", first, tmp_path / "nowhere.safetensors")
    ((lora,), _) = extract(first, second, None, Truncation(1, None), tmp_path, progress=False)
    refused(
        "`dispreferred` is 1_dispreferred_lora_rank1.safetensors, which is a LoRA; give the whole model",
        first,
        lora.path,
    )
    state = load_file(second)
    save_file({key: value.to(torch.float8_e4m3fn) for key, value in state.items()}, tmp_path / "fp8.safetensors")
    refused(
        r"fp8\.safetensors, whose `[\w.]+` is quantized \(F8_E4M3\); give the file in fp16",
        first,
        tmp_path / "fp8.safetensors",
    )
    state["out.2.bias"][0] = torch.nan
    save_file(state, tmp_path / "nan.safetensors")
    refused(
        r"`out\.2\.bias` has NaN or infinite numbers in 0\.safetensors or nan\.safetensors",
        first,
        tmp_path / "nan.safetensors",
    )
    half = {key: value for key, value in states["sd3"][0].items() if "attn.to_k" not in key}
    save_file(half, tmp_path / "half.safetensors")
    refused("has 2 of its 3 parts; download the file again", first, tmp_path / "half.safetensors")
    foreign = states["sd15"][0] | {"down_blocks.0.motion_modules.0.weight": torch.zeros(1)}
    save_file(foreign, tmp_path / "foreign.safetensors")
    refused(
        r"`down_blocks\.0\.motion_modules\.0\.weight` \(1 such\) has no native name",
        first,
        tmp_path / "foreign.safetensors",
    )


def test_wrong_settings_are_refused(tmp_path):
    paths = [tmp_path / "a.safetensors", tmp_path / "b.safetensors"]
    refused("neither `--rank` nor `--energy` is given", *paths, truncation=Truncation(None, None))
    refused("`--rank` is 0; give 1 or more", *paths, truncation=Truncation(0, None))
    for energy in (0, 1.5, float("nan")):
        refused(f"`--energy` is {energy:g}; give a share above 0", *paths, truncation=Truncation(None, energy))


def test_factors_that_overflow_are_refused(states, tmp_path):
    other = {key: value * 1e12 if key == "conv_out.weight" else value for key, value in states["sd15"][0].items()}
    paths = [
        write(tmp_path / f"{i}.safetensors", "sd15", state, "native")
        for i, state in enumerate((states["sd15"][0], other))
    ]
    refused(
        r"`--dtype` is fp16, which the factors of `out\.2\.weight` overflow; use bf16 or fp32",
        *paths,
        truncation=Truncation(8, None),
    )


def test_no_file_is_written_over(states, tmp_path, capsys):
    paths = [write(tmp_path / f"{i}.safetensors", "sd15", state, "native") for i, state in enumerate(states["sd15"])]
    arguments = [
        "extract",
        "--preferred",
        str(paths[0]),
        "--dispreferred",
        str(paths[1]),
        "--rank",
        "1",
        "--output",
        str(tmp_path / "out"),
    ]
    assert cli.main(arguments) == 0
    files = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in (tmp_path / "out").iterdir()}
    assert sorted(path.suffix for path in files) == [".csv", ".safetensors"]
    assert cli.main(arguments) == 0
    assert "the same LoRAs are there already" in capsys.readouterr().out
    assert cli.main([*arguments, "--dtype", "fp32"]) == 2
    assert "is there already and is another file; remove it, or choose another folder" in capsys.readouterr().err
    assert {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in (tmp_path / "out").iterdir()} == files
    # A file of the user's that has a table's name is as safe.
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "1_dispreferred_lora_rank1.csv").write_text("mine")
    assert cli.main([*arguments[:-1], str(tmp_path / "mine")]) == 2
    assert [path.read_text() for path in (tmp_path / "mine").iterdir()] == ["mine"]


def test_a_full_disk_leaves_nothing(states, tmp_path, monkeypatch):
    state = states["sd15"][0]
    paths = [write(tmp_path / f"{i}.safetensors", "sd15", perturbed(state, i), "native") for i in range(3)]
    from chats_train.extraction import extract as extraction

    real, calls = extraction.write_member, []

    def full(path, *rest):
        calls.append(path)
        if len(calls) == 2:
            raise OSError(28, "No space left on device")
        real(path, *rest)

    monkeypatch.setattr(extraction, "write_member", full)
    with pytest.raises(OSError, match="No space left"):
        extract(paths[1], paths[2], paths[0], Truncation(1, None), tmp_path / "out", progress=False)
    assert len(calls) == 2
    assert list((tmp_path / "out").iterdir()) == []


# Memory.

PROBE = """
import sys
from pathlib import Path
import torch
from chats.lowrank.truncation import factorize
from chats_train import cli
from chats_train.extraction import extract as extraction

def resident(which):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(which)) / 2**10

torch.set_num_threads(1)
factorize(torch.randn(64, 512), 4)
Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
before = resident("VmRSS")
status = cli.main(["extract", "--rank", "4", *sys.argv[1:]])
print(status, resident("VmHWM") - before)
held = torch.ones(2**26)
print(resident("VmHWM") - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the peak of memory is read from /proc")
def test_memory_holds_a_few_layers(tmp_path):
    generator = torch.Generator().manual_seed(0)
    # The marker of a family whose files the trainer digests, in a checkpoint: the longest way through the file.
    names = ["joint_blocks.0.context_block.attn.qkv", *(f"joint_blocks.{i}.x_block.mlp.fc1" for i in range(31))]
    arguments = ["--output", str(tmp_path)]
    for member in ("preferred", "dispreferred"):
        tensors = {
            f"model.diffusion_model.{name}.weight": torch.randn(4096, 256, generator=generator) for name in names
        }
        arguments += [f"--{member}", str(tmp_path / f"{member}.safetensors")]
        save_file(tensors, arguments[-1])
    done = subprocess.run(
        [sys.executable, "-c", PROBE, *arguments], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "32 of 32 weights differ, rank 4" in done.stdout
    status, peak, with_held = map(float, done.stdout.split()[-3:])
    assert status == 0
    # Two files of 128 MB. A layer of 4 MB is held a few times over in float64, and of each file the 16 MB that were
    # read last.
    assert peak < 100
    # The measure sees 256 MB where they are.
    assert with_held > 250
