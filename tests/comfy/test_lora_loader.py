"""Loading LoRA pairs from files: two LoRAs on one base, one on a preferred model, and what is refused before anything
is sampled."""

import folder_paths
import mini
import pytest
import torch
from conftest import newest_only, pack_module
from running import guider_of, lora, reference_of, run


@pytest.fixture
def written(tmp_path, monkeypatch):
    """Writes a LoRA as a member of a pair into ComfyUI's folder of LoRAs."""
    monkeypatch.setitem(folder_paths.folder_names_and_paths, "loras", ([str(tmp_path)], {".safetensors"}))
    folder_paths.filename_list_cache.clear()
    pair_module = pack_module("chats.pair")

    def write(name, state, member, pair_id="p1"):
        pair_module.write_member(tmp_path / name, state, pair_module.PairMetadata(member, pair_id=pair_id, alpha=0.5))

    yield write
    folder_paths.filename_list_cache.clear()


@pytest.fixture
def files(written, pairs):
    """A pair of LoRAs for the mini SD1.5."""
    model = pairs("sd15")[0]
    states = {member: lora(model, seed) for seed, member in ((41, "preferred"), (42, "dispreferred"))}
    for member, state in states.items():
        written(f"{member}.safetensors", state, member)
    return states


def test_a_pair_on_one_base(nodes, files, pairs):
    base = pairs("sd15")[0]
    preferred, dispreferred = nodes["CHATSLoRAPairLoader"](
        base, "preferred.safetensors", "dispreferred.safetensors", 0.8, 1.2
    )
    assert preferred.is_clone(base)
    assert dispreferred.is_clone(base)
    assert {patch[0] for patches in preferred.patches.values() for patch in patches} == {0.8}
    assert {patch[0] for patches in dispreferred.patches.values() for patch in patches} == {1.2}
    joined = nodes["CHATSApply"](preferred, dispreferred, 0.0, 1.0)[0]
    conds = mini.conditioning("sd15", 3), mini.conditioning("sd15", 4)
    paired = run(guider_of(joined, *conds, 6.0), mini.latent("sd15"))
    assert mini.relative_error(paired, run(guider_of(preferred, *conds, 6.0), mini.latent("sd15"))) > 0.05


def test_a_preferred_model_and_a_lora_that_leads_from_it(nodes, files, pairs):
    base = pairs("sd15")[0]
    preferred, dispreferred = nodes["CHATSLoRAPairLoader"](base, "none", "dispreferred.safetensors", 1.0, 1.0)
    assert preferred.is_clone(base)
    assert preferred.patches == base.patches
    assert len(dispreferred.patches) > 0
    nodes["CHATSApply"](preferred, dispreferred, 0.0, 1.0)


@newest_only
def test_the_untouched_base_as_the_negative(nodes, files, pairs):
    """none on the dispreferred side and alpha 0: (1+s) ε⁺(z, c) − s ε_ref(z, ∅), from two single-model runs."""
    base = pairs("sd15")[0]
    sides = nodes["CHATSLoRAPairLoader"](base, "preferred.safetensors", "none", 1.0, 1.0)
    assert sides[0].attachments["chats_pair"] is not None
    assert "chats_pair" not in sides[1].attachments, "the base is no member of the pair"
    positive, null = mini.conditioning("sd15", 3), mini.conditioning("sd15", 4)
    negative = nodes["CHATSProxyPrompt"](positive, null, 0.0, "proxy")[0]
    actual = run(guider_of(nodes["CHATSApply"](*sides, 0.0, 1.0)[0], positive, negative, 6.0), mini.latent("sd15"))
    expected = run(reference_of(sides[0], base, positive, null, 6.0), mini.latent("sd15"))
    assert mini.relative_error(actual, expected) < 1e-5


def test_a_strength_of_zero_takes_a_lora_out(nodes, files, pairs):
    base = pairs("sd15")[0]
    conds = mini.conditioning("sd15", 3), mini.conditioning("sd15", 4)
    sides = nodes["CHATSLoRAPairLoader"](base, "preferred.safetensors", "dispreferred.safetensors", 0.0, 0.0)
    actual = run(guider_of(nodes["CHATSApply"](*sides, 0.0, 1.0)[0], *conds, 6.0), mini.latent("sd15"))
    assert mini.relative_error(actual, run(guider_of(base, *conds, 6.0), mini.latent("sd15"))) < 1e-6


@pytest.mark.parametrize(
    ("preferred", "dispreferred", "words"),
    [
        ("none", "none", "both none; choose at least one LoRA"),
        ("preferred.safetensors", "preferred.safetensors", "are both preferred.safetensors"),
        ("none", "preferred.safetensors", "`dispreferred` is preferred.safetensors, which is the preferred member"),
        (
            "gone.safetensors",
            "preferred.safetensors",
            "`preferred_lora` is gone.safetensors, which is not in ComfyUI's loras folder",
        ),
        (
            "gone.safetensors",
            "lost.safetensors",
            "`preferred_lora` is gone.safetensors and `dispreferred_lora` is lost.safetensors, which are not in "
            "ComfyUI's loras folder",
        ),
        ("none", "gone.safetensors", "`dispreferred_lora` is gone.safetensors, which is not in ComfyUI's loras folder"),
    ],
)
def test_refused_when_queued(preferred, dispreferred, words, nodes, files):
    node = nodes["CHATSLoRAPairLoader"].args[0]
    assert words in node.validate_inputs(preferred, dispreferred)
    assert node.validate_inputs("preferred.safetensors", "dispreferred.safetensors") is True


def test_a_lora_of_another_family_is_refused(nodes, files, pairs):
    with pytest.raises(ValueError, match=r"preferred.safetensors changes no weight of `model`"):
        nodes["CHATSLoRAPairLoader"](pairs("sd3")[0], "preferred.safetensors", "dispreferred.safetensors", 1.0, 1.0)


def test_loras_of_two_pairs_are_warned_of(nodes, files, written, pairs, caplog):
    written("other.safetensors", files["dispreferred"], "dispreferred", pair_id="p2")
    nodes["CHATSLoRAPairLoader"](pairs("sd15")[0], "preferred.safetensors", "other.safetensors", 1.0, 1.0)
    assert "different pairs (p1 and p2)" in caplog.text


def text_encoder_lora(style, layers=2):
    """A LoRA for text encoders as kohya's, diffusers' and OneTrainer's tools name it."""
    names = {
        "kohya": [f"lora_te1_text_model_encoder_layers_{i}_mlp_fc1" for i in range(layers)],
        "diffusers": [f"text_encoder.text_model.encoder.layers.{i}.mlp.fc1" for i in range(layers)],
        "generic": [
            f"text_encoders.t5xxl.transformer.encoder.block.{i}.layer.0.SelfAttention.q" for i in range(layers)
        ],
        "kohya, one encoder": [f"lora_te_text_model_encoder_layers_{i}_mlp_fc1" for i in range(layers)],
    }[style]
    ends = (
        ("lora_A.weight", "lora_B.weight") if style == "diffusers" else ("lora_down.weight", "lora_up.weight", "alpha")
    )
    return {f"{name}.{end}": torch.ones(() if end == "alpha" else (2, 2)) for name in names for end in ends}


@pytest.mark.parametrize("style", ["kohya", "kohya, one encoder", "diffusers", "generic"])
def test_weights_for_text_encoders_are_counted_on_the_node(style, nodes, files, written, pairs, caplog):
    base = pairs("sd15")[0]
    written("with_text.safetensors", {**files["preferred"], **text_encoder_lora(style)}, "preferred")
    preferred, _ = nodes["CHATSLoRAPairLoader"](base, "with_text.safetensors", "dispreferred.safetensors", 1.0, 1.0)
    plain, _ = nodes["CHATSLoRAPairLoader"](base, "preferred.safetensors", "dispreferred.safetensors", 1.0, 1.0)
    assert preferred.patches.keys() == plain.patches.keys()
    assert "with_text.safetensors also has 2 weights for text encoders, which are not used" in caplog.text
    assert "lora key not loaded" not in caplog.text
    written("text.safetensors", text_encoder_lora(style, 72), "preferred")
    with pytest.raises(ValueError, match=r"text.safetensors has weights for text encoders only \(72\)"):
        nodes["CHATSLoRAPairLoader"](base, "text.safetensors", "dispreferred.safetensors", 1.0, 1.0)


def test_weights_that_the_model_has_no_place_for_are_counted(nodes, files, written, pairs, monkeypatch):
    loader, said = pack_module("nodes.loading.loaders"), []
    monkeypatch.setattr(loader, "show", lambda text, node_id: said.append(text))
    foreign = {
        f"lora_unet_single_blocks_{i}_linear1.{end}.weight": torch.ones(2, 2)
        for i in range(3)
        for end in ("lora_up", "lora_down")
    }
    written("odd.safetensors", {**files["preferred"], **foreign}, "preferred")
    nodes["CHATSLoRAPairLoader"](pairs("sd15")[0], "odd.safetensors", "dispreferred.safetensors", 1.0, 1.0)
    (text,) = said
    assert text.startswith(
        "recommended: alpha 0.5\n⚠ odd.safetensors also has 3 weights that `model` has no place for, which are"
    )


def test_the_base_stays_as_it_was(nodes, files, pairs):
    base = pairs("sd15")[0]
    before = dict(base.patches)
    weights = {key: value.clone() for key, value in base.model.state_dict().items()}
    nodes["CHATSLoRAPairLoader"](base, "preferred.safetensors", "dispreferred.safetensors", 1.0, 1.0)
    assert base.patches == before
    assert all(torch.equal(value, weights[key]) for key, value in base.model.state_dict().items())
