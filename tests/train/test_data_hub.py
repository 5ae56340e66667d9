"""Data sets of the hub: what is asked for, by its settings."""

import pytest
from pairs_on_disk import prompts, structs, write_parquet

from chats_train.data import open_dataset
from chats_train.settings.config_file import PLACEHOLDERS, parse_config
from chats_train.support.errors import UserError


def test_a_subset_is_one_configuration_of_a_data_set(tmp_path, monkeypatch):
    """A data set in the hub's own form, in a folder: its README names two configurations."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "hub")
    folder = tmp_path / "data"
    for name in ("first", "second"):
        write_parquet(folder / f"{name}.parquet", {"chosen": structs(0), "rejected": structs(1), "prompt": [name]})
    configs = "".join(f"- config_name: {name}\n  data_files: {name}.parquet\n" for name in ("first", "second"))
    (folder / "README.md").write_text(f"---\nconfigs:\n{configs}---\n")
    raw = {"version": 1, "family": "sd15", **PLACEHOLDERS, "resolution": 64, "bucket_reso_steps": 8}
    raw |= {"output_dir": str(tmp_path / "run")}
    for name in ("first", "second"):
        dataset = open_dataset(parse_config({**raw, "data": {"hub_id": str(folder), "subset": name}}), progress=False)
        assert prompts(dataset) == [name]
    with pytest.raises(UserError, match=r"`data.hub_id` is .*, which could not be fetched \(.*third"):
        open_dataset(parse_config({**raw, "data": {"hub_id": str(folder), "subset": "third"}}), progress=False)
