"""Loading pairs from files, and what is said, before any sampling, about models that are no pair."""

import comfy.sd
import mini
import pytest
import torch
from conftest import newest_only, pack_module
from running import guider_of, result, run
from safetensors.torch import save_file


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder that ComfyUI has registered for diffusion models and checkpoints."""
    import folder_paths

    for name in ("diffusion_models", "checkpoints"):
        monkeypatch.setitem(folder_paths.folder_names_and_paths, name, ([str(tmp_path)], {".safetensors", ".ckpt"}))
    folder_paths.filename_list_cache.clear()
    yield tmp_path
    folder_paths.filename_list_cache.clear()


@pytest.fixture
def written(folder):
    """Writes a member of a pair: SD1.5 weights under the checkpoint's or the bare prefix, with metadata."""

    pair_module = pack_module("chats.pair")

    def write(name, seed, member, pair_id="p1", prefix="", **metadata):
        state = {prefix + key: value for key, value in mini.weights("sd15", seed).items()}
        values = dict(pair_id=pair_id, alpha=0.5, guidance_scale=5.0, null_prompt="encoded_empty", **metadata)
        pair_module.write_member(folder / name, state, pair_module.PairMetadata(member, **values))

    return write


def test_a_diffusion_model_pair_loads_and_samples_as_its_weights_do(nodes, written):
    written("p.safetensors", 1, "preferred")
    written("d.safetensors", 2, "dispreferred")
    loaded = nodes["CHATSDiffusionModelPairLoader"]("p.safetensors", "d.safetensors", "default")
    positive, negative = mini.conditioning("sd15", 3), mini.conditioning("sd15", 4)
    samples = [
        run(guider_of(nodes["CHATSApply"](*models, 0.0, 1.0)[0], positive, negative, 6.0), mini.latent("sd15"))
        for models in (loaded, [mini.model("sd15", seed) for seed in (1, 2)])
    ]
    assert torch.equal(*samples)


def test_weight_dtype_is_comfyuis(nodes, written):
    written("p.safetensors", 1, "preferred")
    written("d.safetensors", 2, "dispreferred")
    loaded = nodes["CHATSDiffusionModelPairLoader"]("p.safetensors", "d.safetensors", "fp8_e4m3fn")
    assert {model.model.get_dtype() for model in loaded} == {torch.float8_e4m3fn}


@newest_only
def test_a_diffusers_format_unet_loads(nodes, folder, written):
    """The layout of the authors' published pairs. ComfyUI knows the full SD1.5 configuration only, so its keys at real
    widths."""
    from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel
    from comfy.ops import disable_weight_init
    from comfy.utils import unet_to_diffusers

    config = dict(
        image_size=32, in_channels=4, model_channels=320, out_channels=4, num_res_blocks=[2, 2, 2, 2],
        channel_mult=[1, 2, 4, 4], num_heads=8, use_spatial_transformer=True,
        transformer_depth=[1, 1, 1, 1, 1, 1, 0, 0], transformer_depth_middle=1,
        transformer_depth_output=[1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0], context_dim=768, legacy=False,
    )  # fmt: skip
    native = UNetModel(**config, device="meta", dtype=torch.float16, operations=disable_weight_init).state_dict()
    names = {theirs: ours for theirs, ours in unet_to_diffusers(config).items() if ours in native}
    assert len(names) == len(native) == 686
    # Each tensor of zeros but for its first number, one of those that fp8 holds exactly. Tensors of one shape have
    # different ones.
    numbers = torch.tensor([*range(1, 120), *range(129, 248)], dtype=torch.uint8)
    shapes = {theirs: native[ours].shape for theirs, ours in names.items()}
    firsts = {}
    for offset, member in enumerate(("preferred", "dispreferred")):
        firsts[member] = [int(numbers[(index + offset) % len(numbers)]) for index in range(len(shapes))]
        mini.write_zeros(folder / f"{member}.safetensors", shapes, torch.float8_e4m3fn, bytes(firsts[member]))
    models = nodes["CHATSDiffusionModelPairLoader"]("preferred.safetensors", "dispreferred.safetensors", "fp8_e4m3fn")
    for model, expected in zip(models, firsts.values(), strict=True):
        loaded = model.model.diffusion_model.state_dict()
        for ours, first in zip(names.values(), expected, strict=True):
            assert loaded[ours].flatten()[:1].view(torch.uint8).item() == first, ours


def test_a_checkpoint_pair_gives_models_clip_and_vae(nodes, written, folder):
    written("p.safetensors", 1, "preferred", prefix="model.diffusion_model.")
    written("d.safetensors", 2, "dispreferred", prefix="model.diffusion_model.")
    preferred, dispreferred, _, _ = nodes["CHATSCheckpointPairLoader"]("p.safetensors", "d.safetensors")
    for model, seed in ((preferred, 1), (dispreferred, 2)):
        expected = mini.weights("sd15", seed)["out.2.weight"]
        assert torch.equal(model.model.diffusion_model.state_dict()["out.2.weight"], expected)


def test_different_pairs_are_warned_about(nodes, written, caplog):
    written("p.safetensors", 1, "preferred", pair_id="p1")
    written("d.safetensors", 2, "dispreferred", pair_id="p2")
    nodes["CHATSDiffusionModelPairLoader"]("p.safetensors", "d.safetensors", "default")
    assert "the two files are of different pairs (p1 and p2)" in caplog.text


def test_a_lost_prediction_type_is_warned_about(nodes, written, caplog):
    written("p.safetensors", 1, "preferred", prediction_type="v_prediction")
    written("d.safetensors", 2, "dispreferred", prediction_type="v_prediction")
    nodes["CHATSDiffusionModelPairLoader"]("p.safetensors", "d.safetensors", "default")
    assert "sampled as epsilon, but the pair was trained for v_prediction" in caplog.text


def test_file_errors_are_one_sentence_at_the_queue_and_in_the_run(nodes, written, folder, pack):
    import asyncio

    written("p.safetensors", 1, "preferred")
    written("d.safetensors", 2, "dispreferred")
    written("p2.safetensors", 2, "preferred")
    (folder / "cut.safetensors").write_bytes((folder / "d.safetensors").read_bytes()[:-100])
    (folder / "pickle.ckpt").write_bytes(b"PK\x03\x04" + bytes(64))
    save_file({"w": torch.ones(2)}, folder / "foreign.safetensors", metadata={"chats.member": "loser"})
    cases = {
        "p.safetensors": "`preferred` and `dispreferred` are both p.safetensors",
        "p2.safetensors": "`dispreferred` is p2.safetensors, which is the preferred member",
        "cut.safetensors": "cut.safetensors is not a whole safetensors file",
        "pickle.ckpt": "pickle.ckpt is a `.ckpt` file",
        "absent.safetensors": "not in ComfyUI's diffusion_models folder",
        "foreign.safetensors": "`chats.member` = `loser`",
    }
    classes = {
        node.GET_SCHEMA().node_id: node for node in asyncio.run(asyncio.run(pack.comfy_entrypoint()).get_node_list())
    }
    loader = classes["CHATSDiffusionModelPairLoader"]
    for name, message in cases.items():
        verdict = loader.validate_inputs("p.safetensors", name)
        assert isinstance(verdict, str), name
        assert message in verdict
        assert "\n" not in verdict
        with pytest.raises(ValueError, match=r".") as error:
            nodes["CHATSDiffusionModelPairLoader"]("p.safetensors", name, "default")
        assert str(error.value) == verdict
    assert loader.validate_inputs("p.safetensors", "d.safetensors") is True
    assert loader.validate_inputs("p.safetensors", None) is True


def refused(nodes, preferred, dispreferred, message):
    with pytest.raises(ValueError, match=message) as error:
        nodes["CHATSApply"](preferred, dispreferred, 0.0, 1.0)
    assert "\n" not in str(error.value)


def test_different_architectures_name_the_first_difference(nodes, pairs):
    refused(nodes, pairs("sd15")[0], pairs("sd3")[0], "different architectures: SD15 and SD3")


def test_different_widths_name_the_first_difference(nodes):
    config = {
        **mini.SD15,
        "num_res_blocks": [2],
        "transformer_depth": [1, 1],
        "transformer_depth_output": [1] * 3,
    }
    other = comfy.sd.load_diffusion_model_state_dict(mini.unet_weights(config, 1))
    refused(nodes, mini.model("sd15", 1), other, r"`num_res_blocks` is \[1\] and \[2\]")


def test_epsilon_against_flow(nodes, pairs):
    from comfy_extras.nodes_model_advanced import ModelSamplingSD3

    flow = result(ModelSamplingSD3, pairs("sd15")[1], 3.0)[0]
    refused(nodes, pairs("sd15")[0], flow, "`preferred` is a diffusion model and `dispreferred` a flow matching model")


def test_epsilon_with_v_prediction_is_accepted(nodes, pairs):
    """Both denoise the same noise; the predictions are combined as denoised latents."""
    nodes["CHATSApply"](pairs("sd15")[0], pairs("sd15_v")[1], 0.0, 1.0)


def test_a_model_and_its_unpatched_clone_are_refused(nodes, pairs):
    model = pairs("sd15")[0]
    refused(nodes, model, model, "are the same model")
    refused(nodes, model, model.clone(), "are the same model")


def test_a_pair_is_no_member_of_a_pair(nodes, pairs):
    paired = nodes["CHATSApply"](*pairs("sd15"), 0.0, 1.0)[0]
    refused(nodes, paired, pairs("sd15")[1], "`preferred` already is a CHATS pair")
    refused(nodes, pairs("sd15")[0], paired.clone(), "`dispreferred` already is a CHATS pair")


def test_an_empty_interval_is_refused(nodes, pairs):
    with pytest.raises(ValueError, match=r"`start_percent` is 0.6 and `end_percent` 0.2"):
        nodes["CHATSApply"](*pairs("sd15"), 0.6, 0.2)
