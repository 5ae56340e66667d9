"""The pair's metadata on disk, and what is said about files that are no pair."""

import dataclasses
import json
import re
import struct

import pytest
import torch
from safetensors.torch import load_file

from chats import pair
from chats.words import shown_error

PREFERRED = pair.PairMetadata(
    "preferred",
    pair_id="a1",
    base_name="mini",
    base_sha256="00ff",
    prediction_type="v_prediction",
    null_prompt="zeros",
    null_prompt_prob=0.5,
    alpha=0.6,
    guidance_scale=5.0,
    beta=1000.0,
    resolution=1024,
    step=200,
    config_sha256="11",
    dataset_fingerprint="22",
)
DISPREFERRED = dataclasses.replace(PREFERRED, member="dispreferred")
WEIGHTS = {"weight": torch.arange(6.0).reshape(2, 3)}


@pytest.fixture
def write(tmp_path):
    def write(name, metadata):
        pair.write_member(tmp_path / name, WEIGHTS, metadata, {"modelspec.title": "mini"})
        return tmp_path / name

    return write


def test_what_is_written_is_read(write):
    path = write("p.safetensors", PREFERRED)
    assert pair.read_metadata(path) == PREFERRED
    header = pair.read_header(path)
    assert header["modelspec.title"] == "mini"
    assert header["chats.member"] == "preferred"
    assert header["chats.guidance_scale"] == "5.0"
    assert all(isinstance(value, str) for value in header.values())


HEADER = {
    "chats.member": "preferred",
    "chats.format_version": "1",
    "chats.pair_id": "a1",
    "chats.base_name": "mini",
    "chats.base_sha256": "00ff",
    "chats.prediction_type": "v_prediction",
    "chats.null_prompt": "zeros",
    "chats.null_prompt_prob": "0.5",
    "chats.alpha": "0.6",
    "chats.guidance_scale": "5.0",
    "chats.beta": "1000.0",
    "chats.resolution": "1024",
    "chats.step": "200",
    "chats.config_sha256": "11",
    "chats.dataset_fingerprint": "22",
    "chats.proxy_cosine": "0.9123",
    "chats.proxy_relative_error": "0.4",
}


def test_the_header_is_version_0_1_0s():
    """Its keys and words are an API: files that people have say them, and other tools may read them."""
    metadata = dataclasses.replace(PREFERRED, proxy_cosine=0.9123, proxy_relative_error=0.4)
    assert metadata.to_header() == HEADER
    assert pair.PairMetadata.from_header(HEADER) == metadata


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("member", "preferred"),
        ("member", "dispreferred"),
        ("prediction_type", "epsilon"),  # SD1.5 and SDXL
        ("prediction_type", "v_prediction"),  # SD2, and SDXL made into one
        ("prediction_type", "flow"),  # SD3 and Flux
        ("null_prompt", "encoded_empty"),
        ("null_prompt", "zeros"),
        ("negative", "dispreferred"),
        ("negative", "base"),
    ],
)
def test_every_word_that_is_written_is_read(key, value):
    header = {"chats.member": "preferred", f"chats.{key}": value}
    assert getattr(pair.PairMetadata.from_header(header), key) == value


def test_the_same_member_is_the_same_file(tmp_path):
    modelspec = {"modelspec.title": 'a "pair"\n\t\x01\x7f αβ 🐈', "modelspec.author": "\\"}
    paths = [tmp_path / f"{index}.safetensors" for index in range(4)]
    for path in paths:
        pair.write_member(path, WEIGHTS, PREFERRED, modelspec)
    assert len({path.read_bytes() for path in paths}) == 1
    content = paths[0].read_bytes()
    written = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    assert list(written["__metadata__"]) == sorted({**modelspec, **PREFERRED.to_header()})
    assert pair.read_header(paths[0]) == {**modelspec, **PREFERRED.to_header()}
    assert torch.equal(load_file(paths[0])["weight"], WEIGHTS["weight"])


def test_what_is_not_stated_is_not_written(write):
    path = write("p.safetensors", pair.PairMetadata("preferred"))
    assert {key for key in pair.read_header(path) if key.startswith("chats.")} == {
        "chats.member",
        "chats.format_version",
    }


def test_the_origin_says_what_is_stated():
    rated = dict(dataset_name="my taste", base_name="SD15")
    whole = pair.PairMetadata("preferred", **rated, dataset_pairs=137, held_out_accuracy=0.714, base_file="b.sft")
    assert whole.origin() == "137 rated pairs of my taste, base b.sft, held-out pairs told right: 71%"
    assert pair.PairMetadata.from_header(whole.to_header()) == whole
    assert pair.PairMetadata("preferred", **rated).origin() == "my taste, base SD15"
    assert PREFERRED.origin() == ""


def test_the_recommendation_is_in_comfyuis_terms():
    assert PREFERRED.recommendation() == "cfg 6 (s = 5), alpha 0.6, null prompt: zeros (ConditioningZeroOut), 1024 px"
    assert pair.PairMetadata("preferred").recommendation() == ""
    assert pair.PairMetadata("preferred", negative="base").recommendation() == (
        "better negative: the untouched base, at alpha 0"
    )
    assert (
        pair.PairMetadata("preferred", null_prompt="encoded_empty").recommendation() == "null prompt: an empty prompt"
    )


def test_a_pair_is_a_pair(write):
    assert pair.check_files(write("p.safetensors", PREFERRED), write("d.safetensors", DISPREFERRED)) == (PREFERRED, [])


def test_members_of_different_pairs_are_warned_about(write):
    other = dataclasses.replace(DISPREFERRED, pair_id="b2", step=100)
    _, warnings = pair.check_files(write("p.safetensors", PREFERRED), write("d.safetensors", other))
    assert warnings == [
        "the two files are of different pairs (a1 and b2)",
        "`chats.step` differs: 200 in the preferred file, 100 in the dispreferred",
    ]


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("base_sha256", "11ee", "00ff in the preferred file, 11ee"),  # two bases are no pair of Eq. 13
        ("prediction_type", "epsilon", "v_prediction in the preferred file, epsilon"),  # Eq. 16 would mix ε and v
    ],
)
def test_members_of_different_bases_are_warned_about(write, name, value, words):
    other = dataclasses.replace(DISPREFERRED, **{name: value})
    _, warnings = pair.check_files(write("p.safetensors", PREFERRED), write("d.safetensors", other))
    assert warnings == [f"`chats.{name}` differs: {words} in the dispreferred"]


def test_what_two_trainings_may_set_apart_is_no_warning(write):
    # Sizes, seeds and recommendations may differ from run to run without the weights being of two pairs.
    other = dataclasses.replace(DISPREFERRED, alpha=0.5, resolution=512, config_sha256="33", beta=500.0)
    assert pair.check_files(write("p.safetensors", PREFERRED), write("d.safetensors", other)) == (PREFERRED, [])


def test_a_side_without_a_file_is_no_mistake(write):
    # As where the base itself is one of the members.
    preferred, dispreferred = write("p.safetensors", PREFERRED), write("d.safetensors", DISPREFERRED)
    assert pair.check_files(preferred, None) == (PREFERRED, [])
    assert pair.check_files(None, dispreferred) == (DISPREFERRED, [])
    assert pair.check_files(None, None) == (None, [])


def test_files_without_metadata_pass(tmp_path, write):
    from safetensors.torch import save_file

    save_file(WEIGHTS, tmp_path / "a.safetensors")
    save_file(WEIGHTS, tmp_path / "b.safetensors")
    assert pair.check_files(tmp_path / "a.safetensors", tmp_path / "b.safetensors") == (None, [])
    metadata, warnings = pair.check_files(tmp_path / "a.safetensors", write("d.safetensors", DISPREFERRED))
    assert metadata == DISPREFERRED
    assert warnings == ["the preferred file has no pair metadata, the other has; they may not belong together"]
    metadata, warnings = pair.check_files(write("p.safetensors", PREFERRED), tmp_path / "a.safetensors")
    assert metadata == PREFERRED
    assert warnings == ["the dispreferred file has no pair metadata, the other has; they may not belong together"]


@pytest.mark.parametrize(("slot", "member"), [("preferred", "dispreferred"), ("dispreferred", "preferred")])
def test_a_member_in_the_other_place_is_refused(write, slot, member):
    files = {"preferred": write("p.safetensors", PREFERRED), "dispreferred": write("d.safetensors", DISPREFERRED)}
    files[slot] = write("other.safetensors", dataclasses.replace(PREFERRED, member=member))
    with pytest.raises(pair.PairError, match="is other") as error:
        pair.check_files(files["preferred"], files["dispreferred"])
    assert str(error.value) == (
        f"`{slot}` is other.safetensors, which is the {member} member of its pair; choose a {slot} member there"
    )


def test_the_same_file_twice_is_refused(tmp_path):
    from safetensors.torch import save_file

    save_file(WEIGHTS, tmp_path / "a.safetensors")
    (tmp_path / "link.safetensors").symlink_to(tmp_path / "a.safetensors")
    with pytest.raises(pair.PairError, match=r"both a\.safetensors") as error:
        pair.check_files(tmp_path / "a.safetensors", tmp_path / "link.safetensors")
    assert str(error.value) == (
        "`preferred` and `dispreferred` are both a.safetensors; choose the two members of a pair"
    )


FOREIGN = "it was not written by this pack: export it again"


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        (
            {"chats.alpha": "0.5"},
            "has `chats.*` metadata but no `chats.member`, so it is not known which member of a pair it is; export it "
            "again, or remove the metadata",
        ),
        (
            {"chats.member": "winner"},
            f"has `chats.member` = `winner`, expected `preferred` or `dispreferred`; {FOREIGN}",
        ),
        (
            {"chats.member": "preferred", "chats.alpha": "half"},
            f"has `chats.alpha` = `half`, expected a number (float); {FOREIGN}",
        ),
        (
            {"chats.member": "preferred", "chats.alpha": "nan"},
            f"has `chats.alpha` = `nan`, expected a number (float); {FOREIGN}",
        ),
        (
            {"chats.member": "preferred", "chats.step": "1.5"},
            f"has `chats.step` = `1.5`, expected a number (int); {FOREIGN}",
        ),
        (
            {"chats.member": "preferred", "chats.null_prompt": "none"},
            f"has `chats.null_prompt` = `none`, expected `encoded_empty` or `zeros`; {FOREIGN}",
        ),
        (
            {"chats.member": "preferred", "chats.prediction_type": "x0"},
            f"has `chats.prediction_type` = `x0`, expected `epsilon` or `v_prediction` or `flow`; {FOREIGN}",
        ),
        (
            {"chats.member": "preferred", "chats.format_version": "2"},  # a later pack's, whose keys may mean others
            "has `chats.format_version` 2, this pack reads up to 1; update ComfyUI-CHATS",
        ),
    ],
)
def test_foreign_metadata_is_one_clear_sentence(tmp_path, entries, message):
    from safetensors.torch import save_file

    save_file(WEIGHTS, tmp_path / "a.safetensors", metadata=entries)
    with pytest.raises(pair.PairError, match="has `chats") as error:
        pair.read_metadata(tmp_path / "a.safetensors")
    assert str(error.value) == f"a.safetensors {message}"
    with pytest.raises(pair.PairError, match=re.escape(f"the file {message}")):
        pair.PairMetadata.from_header(entries)


def test_unknown_chats_keys_are_left_alone():
    header = {"chats.member": "preferred", "chats.later_addition": "x", "modelspec.title": "t"}
    assert pair.PairMetadata.from_header(header) == pair.PairMetadata("preferred")


def test_keys_of_other_tools_are_not_taken_for_ours():
    # Other trainers write a `step` or an `alpha` of their own, and no `chats.` before it.
    others = {"format": "pt", "step": "one", "member": "winner", "modelspec.title": "t"}
    assert pair.PairMetadata.from_header(others) is None
    assert pair.PairMetadata.from_header({"chats.member": "preferred", **others}) == pair.PairMetadata("preferred")


def test_broken_files_are_one_clear_sentence(tmp_path, write):
    whole = write("p.safetensors", PREFERRED).read_bytes()
    damaged = {
        "cut.safetensors": whole[:-4],
        "head.safetensors": whole[:20],
        "empty.safetensors": b"",
        "pickled.safetensors": b"PK\x03\x04" + bytes(100),
        "huge.safetensors": struct.pack("<Q", 1 << 60) + bytes(16),
    }
    for name, content in damaged.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(pair.PairError, match="is not a whole safetensors file") as error:
            pair.read_header(tmp_path / name)
        said = shown_error(error.value.__cause__)  # what the library says
        assert str(error.value) == f"{name} is not a whole safetensors file ({said}); download or export it again"


def test_a_file_of_another_kind_is_not_opened(tmp_path):
    (tmp_path / "model.ckpt").write_bytes(b"PK\x03\x04")
    with pytest.raises(pair.PairError, match="can run code") as error:
        pair.read_header(tmp_path / "model.ckpt")
    assert str(error.value) == (
        "model.ckpt is a `.ckpt` file, which can run code when it is opened; convert it to .safetensors first"
    )
    with pytest.raises(pair.PairError, match="absent") as error:
        pair.read_header(tmp_path / "absent.safetensors")
    assert str(error.value) == "absent.safetensors is not there; put the file in place or choose another"
    (tmp_path / "folder.safetensors").mkdir()
    with pytest.raises(pair.PairError, match="is not there"):
        pair.read_header(tmp_path / "folder.safetensors")


@pytest.mark.parametrize("name", ["p.safetensors", "p.sft", "p.SAFETENSORS"])
def test_both_endings_are_written_and_read(write, name):
    # ComfyUI lists both; on a disk that was Windows' they may be in capitals.
    assert pair.read_metadata(write(name, PREFERRED)) == PREFERRED


def test_a_file_without_metadata_has_an_empty_header(tmp_path):
    from safetensors.torch import save_file

    save_file(WEIGHTS, tmp_path / "a.safetensors")
    assert pair.read_header(tmp_path / "a.safetensors") == {}
    assert pair.read_metadata(tmp_path / "a.safetensors") is None


def test_another_ending_is_not_written(tmp_path):
    with pytest.raises(pair.PairError, match="must end") as error:
        pair.write_member(tmp_path / "p.ckpt", WEIGHTS, PREFERRED)
    assert str(error.value) == "p.ckpt must end in .safetensors"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("key", ["config", "_quantization_metadata"])
def test_keys_that_comfyui_parses_are_not_written(tmp_path, key):
    # Of every file that it loads: the one as a network's configuration, the other as the layers that are quantised.
    with pytest.raises(pair.PairError, match="cannot be a metadata key") as error:
        pair.write_member(tmp_path / "p.safetensors", WEIGHTS, PREFERRED, {key: "{}"})
    assert str(error.value) == (f"`{key}` cannot be a metadata key, ComfyUI parses it as its own; choose another name")
    assert list(tmp_path.iterdir()) == []


def test_views_are_written_as_they_look(tmp_path):
    weight = torch.arange(6.0).reshape(2, 3).t()
    pair.write_member(tmp_path / "p.safetensors", {"weight": weight}, PREFERRED)
    assert torch.equal(load_file(tmp_path / "p.safetensors")["weight"], weight)


def test_a_failed_write_leaves_the_old_file_and_no_other(tmp_path, write):
    path = write("p.safetensors", PREFERRED)
    before = path.read_bytes()
    with pytest.raises(pair.PairError, match="`config` cannot be a metadata key"):
        pair.write_member(path, WEIGHTS, DISPREFERRED, {"config": "{}"})
    with pytest.raises(TypeError):
        pair.write_member(path, WEIGHTS, DISPREFERRED, {"modelspec.title": 7})
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["p.safetensors"]
