"""Damaged files in the pair loaders: loaded, or refused in one sentence; a few of those that tests/mutating tries."""

import pytest
from mutating import cases, comfy

COUNT = 40


def test_damaged_files_are_loaded_or_refused_in_a_sentence(tmp_path, monkeypatch):
    import folder_paths

    for kind in comfy.LOADERS:
        monkeypatch.setitem(folder_paths.folder_names_and_paths, kind, folder_paths.folder_names_and_paths[kind])
    result = cases.run(comfy.LoaderFiles(tmp_path / "whole"), COUNT, 7, tmp_path)
    folder_paths.filename_list_cache.clear()
    assert result.failures() == {}
    assert {reading.outcome for reading in result.readings} == {"accepted", "refused"}


@pytest.mark.parametrize("value", [True, None, 3, "x", [], {}])
def test_a_value_in_the_place_of_a_link_is_named(value, nodes, pairs):
    model = pairs("sd15")[0]
    with pytest.raises(ValueError, match=r"`dispreferred` is `.*`, which is no model; connect"):
        nodes["CHATSApply"](model, value, 0.0, 1.0)
    if not isinstance(value, list):
        with pytest.raises(ValueError, match=r"`null` is `.*`, which is no conditioning; connect"):
            nodes["CHATSProxyPrompt"]([], value, 0.5, "proxy")
    if not isinstance(value, str):
        with pytest.raises(ValueError, match=r"`preferred` is `.*`, which is no file's name; choose a file"):
            nodes["CHATSDiffusionModelPairLoader"](value, "x", "default")


def test_only_a_lora_can_be_left_out(nodes):
    for loader, rest in (("CHATSCheckpointPairLoader", ()), ("CHATSDiffusionModelPairLoader", ("default",))):
        with pytest.raises(
            ValueError, match=r"`preferred` is none and `dispreferred` is x, which are not in ComfyUI's .* folder"
        ):
            nodes[loader]("none", "x", *rest)
