"""The pair's metadata on disk, and what is said about files that are no pair."""

import dataclasses
import struct

import pytest
import torch
from safetensors.torch import load_file

from chats import pair

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


def test_the_same_member_is_the_same_file(tmp_path):
    modelspec = {"modelspec.title": 'a "pair"\n\t\x01\x7f αβ 🐈', "modelspec.author": "\\"}
    paths = [tmp_path / f"{index}.safetensors" for index in range(4)]
    for path in paths:
        pair.write_member(path, WEIGHTS, PREFERRED, modelspec)
    assert len({path.read_bytes() for path in paths}) == 1
    assert pair.read_header(paths[0]) == {**modelspec, **PREFERRED.to_header()}
    assert torch.equal(load_file(paths[0])["weight"], WEIGHTS["weight"])


def test_what_is_not_stated_is_not_written(write):
    path = write("p.safetensors", pair.PairMetadata("preferred"))
    assert {key for key in pair.read_header(path) if key.startswith("chats.")} == {
        "chats.member",
        "chats.format_version",
    }


def test_the_recommendation_is_in_comfyuis_terms():
    assert PREFERRED.recommendation() == "cfg 6 (s = 5), alpha 0.6, null prompt: zeros (ConditioningZeroOut), 1024 px"
    assert pair.PairMetadata("preferred").recommendation() == ""


def test_a_pair_is_a_pair(write):
    assert pair.check_files(write("p.safetensors", PREFERRED), write("d.safetensors", DISPREFERRED)) == (PREFERRED, [])


def test_members_of_different_pairs_are_warned_about(write):
    other = dataclasses.replace(DISPREFERRED, pair_id="b2", step=100)
    _, warnings = pair.check_files(write("p.safetensors", PREFERRED), write("d.safetensors", other))
    assert any("different pairs (a1 and b2)" in warning for warning in warnings)
    assert any("`chats.step` differs: 200" in warning for warning in warnings)


def test_files_without_metadata_pass(tmp_path, write):
    from safetensors.torch import save_file

    save_file(WEIGHTS, tmp_path / "a.safetensors")
    save_file(WEIGHTS, tmp_path / "b.safetensors")
    assert pair.check_files(tmp_path / "a.safetensors", tmp_path / "b.safetensors") == (None, [])
    metadata, warnings = pair.check_files(tmp_path / "a.safetensors", write("d.safetensors", DISPREFERRED))
    assert metadata == DISPREFERRED
    assert warnings == ["the preferred file has no pair metadata, the other has; they may not belong together"]


@pytest.mark.parametrize(("slot", "member"), [("preferred", "dispreferred"), ("dispreferred", "preferred")])
def test_a_member_in_the_other_place_is_refused(write, slot, member):
    files = {"preferred": write("p.safetensors", PREFERRED), "dispreferred": write("d.safetensors", DISPREFERRED)}
    files[slot] = write("other.safetensors", dataclasses.replace(PREFERRED, member=member))
    with pytest.raises(pair.PairError, match=f"`{slot}` is other.safetensors, which is the {member} member"):
        pair.check_files(files["preferred"], files["dispreferred"])


def test_the_same_file_twice_is_refused(tmp_path):
    from safetensors.torch import save_file

    save_file(WEIGHTS, tmp_path / "a.safetensors")
    (tmp_path / "link.safetensors").symlink_to(tmp_path / "a.safetensors")
    with pytest.raises(pair.PairError, match=r"both a\.safetensors"):
        pair.check_files(tmp_path / "a.safetensors", tmp_path / "link.safetensors")


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"chats.alpha": "0.5"}, "no `chats.member`"),
        ({"chats.member": "winner"}, "`chats.member` = `winner`, expected `preferred` or `dispreferred`"),
        ({"chats.member": "preferred", "chats.alpha": "half"}, r"`chats.alpha` = `half`, expected a number"),
        ({"chats.member": "preferred", "chats.alpha": "nan"}, r"`chats.alpha` = `nan`, expected a number"),
        ({"chats.member": "preferred", "chats.null_prompt": "none"}, "`chats.null_prompt` = `none`"),
        ({"chats.member": "preferred", "chats.format_version": "99"}, "update ComfyUI-CHATS"),
    ],
)
def test_foreign_metadata_is_one_clear_sentence(tmp_path, entries, message):
    from safetensors.torch import save_file

    save_file(WEIGHTS, tmp_path / "a.safetensors", metadata=entries)
    with pytest.raises(pair.PairError, match=message) as error:
        pair.read_metadata(tmp_path / "a.safetensors")
    assert "\n" not in str(error.value)
    assert "a.safetensors" in str(error.value)


def test_unknown_chats_keys_are_left_alone():
    header = {"chats.member": "preferred", "chats.later_addition": "x", "modelspec.title": "t"}
    assert pair.PairMetadata.from_header(header) == pair.PairMetadata("preferred")


def test_broken_files_are_one_clear_sentence(tmp_path, write):
    whole = write("p.safetensors", PREFERRED).read_bytes()
    cases = {
        "cut.safetensors": (whole[:-4], "not a whole safetensors file"),
        "head.safetensors": (whole[:20], "not a whole safetensors file"),
        "empty.safetensors": (b"", "not a whole safetensors file"),
        "pickled.safetensors": (b"PK\x03\x04" + bytes(100), "not a whole safetensors file"),
        "huge.safetensors": (struct.pack("<Q", 1 << 60) + bytes(16), "not a whole safetensors file"),
        "model.ckpt": (b"PK\x03\x04", "can run code when it is opened"),
    }
    for name, (content, message) in cases.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(pair.PairError, match=message):
            pair.read_header(tmp_path / name)
    with pytest.raises(pair.PairError, match=r"absent.safetensors is not there"):
        pair.read_header(tmp_path / "absent.safetensors")


def test_a_failed_write_leaves_the_old_file_and_no_other(tmp_path, write):
    path = write("p.safetensors", PREFERRED)
    before = path.read_bytes()
    with pytest.raises(pair.PairError, match="`config` cannot be a metadata key"):
        pair.write_member(path, WEIGHTS, DISPREFERRED, {"config": "{}"})
    with pytest.raises(TypeError):
        pair.write_member(path, WEIGHTS, DISPREFERRED, {"modelspec.title": 7})
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["p.safetensors"]
