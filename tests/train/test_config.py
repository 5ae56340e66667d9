"""The config file: what it accepts, what it says about what it does not, and what it becomes on disk."""

import os
import subprocess
import sys
from pathlib import Path
from typing import get_args

import pytest
import yaml

from chats.objective import DEFAULT_BETA, OBJECTIVES
from chats_train.settings import config_file
from chats_train.settings.config import DERIVED, DataConfig, RunConfig
from chats_train.settings.facts import FAMILIES
from chats_train.support.errors import UserError

MINIMAL = """
version: 1
family: sdxl
output_dir: out
pretrained_model: base.safetensors
data: {path: pairs}
"""


@pytest.fixture
def load(tmp_path):
    def load(text, *overrides):
        (tmp_path / "run.yaml").write_text(text, encoding="utf-8")
        return config_file.load_config(tmp_path / "run.yaml", overrides)

    return load


def complaint(load, text, *overrides):
    with pytest.raises(UserError) as caught:
        load(text, *overrides)
    return str(caught.value)


def test_defaults_follow_the_family_and_the_method(load):
    config = load(MINIMAL)
    assert (config.resolution, config.min_bucket_reso, config.max_bucket_reso) == (1024, 512, 2048)
    assert config.cache_dir == Path("out/cache")
    assert config.learning_rate == 1e-5
    assert config.beta == DEFAULT_BETA
    full = load(MINIMAL, "training_method=full", "family=sd15", "resolution=null")
    assert (full.learning_rate, full.resolution, full.min_bucket_reso) == (5e-7, 512, 256)


def test_the_objectives_are_those_of_chats():
    assert set(get_args(RunConfig.model_fields["objective"].annotation)) == set(OBJECTIVES)


def test_scalars_are_those_of_yaml_1_2(load):
    # YAML 1.1, PyYAML's own, reads `no` as false and 1e-5 as text.
    config = load(
        MINIMAL + "mixed_precision: no\nlearning_rate: 1e-5\nmax_grad_norm: 0\nsample_prompts: [no, 2024-01-01, off]\n"
    )
    assert (config.mixed_precision, config.learning_rate, config.max_grad_norm) == ("no", 1e-5, 0.0)
    assert config.sample_prompts == ["no", "2024-01-01", "off"]


def test_overrides_are_yaml_scalars_with_dotted_keys(load):
    overrides = [
        "data.strict=true",
        "data.columns.prompt=caption",
        "learning_rate=3e-6",
        "seed=7",
        "sample_prompts=[a cat, 'b: c']",
    ]
    config = load(MINIMAL, *overrides)
    assert config.data.strict is True
    assert config.data.columns.prompt == "caption"
    assert (config.learning_rate, config.sample_prompts, config.seed) == (3e-6, ["a cat", "b: c"], 7)


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("learning_rte=1e-5", "`learning_rte` is not a setting; did you mean `learning_rate`?"),
        ("data.stirct=true", "`data.stirct` is not a setting; did you mean `data.strict`?"),
        ("strict=true", "`strict` is not a setting; did you mean `data.strict`?"),
        ("qqqq=1", "`qqqq` is not a setting; remove it (`python -m chats_train init` lists all settings)"),
        ("resolution=1001", "`resolution` is 1001; SDXL needs a multiple of 8: try 1000"),
        ("mixed_precision=bf61", "`mixed_precision` is `bf61`; it should be one of no, fp16, bf16; did you mean bf16?"),
        ("prediction_type=flow", "`prediction_type` is `flow`; for SDXL set epsilon or v_prediction, or leave it out"),
        ("train_batch_size=true", "`train_batch_size` is `true`; it should be a whole number, such as 1"),
        ("beta=-1", "`beta` is `-1`; it should be greater than 0, such as 1000.0"),
        ("learning_rate=.nan", "`learning_rate` is `nan`; it should be a finite number"),
        ("enable_bucket=yes", "`enable_bucket` is `yes`; it should be true or false"),
        ("family=sdx", "`family` is `sdx`; set it to one of sd15, sdxl, sd3, flux"),
        ("version=2", "`version` is 2; this trainer reads `version: 1`"),
        ("data.hub_id=a/b", "`data.path` and `data.hub_id` are both set"),
        ("data.path=null", "`data.path` and `data.hub_id` are both missing"),
        ("sample_every=5", "`sample_every` is 5 but `sample_prompts` is empty; add a prompt"),
        ("max_bucket_reso=512", "`resolution` is 1024, outside of `min_bucket_reso` 512 to `max_bucket_reso` 512"),
        ("beta", "`--set beta` has no `=`"),
        ("beta.x=1", "`beta.x` is not"),
        ("family.x=1", "`family` is a single value and has no `x`"),
        ("seed=[1", "the value is not valid YAML"),
    ],
)
def test_what_is_wrong_is_said_in_a_sentence(load, override, sentence):
    said = complaint(load, MINIMAL, override)
    if override == "beta.x=1":
        assert "`beta` is `{'x': 1}`; it should be a number" in said
    else:
        assert sentence in said
    assert "\n" not in said


def test_every_wrong_setting_gets_its_sentence(load):
    said = complaint(load, MINIMAL, "beta=0", "sed=1").splitlines()
    assert len(said) == 2
    assert said[1] == "`sed` is not a setting; did you mean `seed`?"


def test_fp16_needs_fp32_masters(load):
    settings = ("training_method=full", "weight_dtype=bf16")
    assert "`mixed_precision` is fp16, which needs `weight_dtype` fp32" in complaint(
        load, MINIMAL, *settings, "mixed_precision=fp16"
    )
    assert load(MINIMAL, *settings, "mixed_precision=bf16").weight_dtype == "bf16"


def test_flux_is_trained_whole_too(load):
    assert load(MINIMAL, "family=flux", "training_method=full").training_method == "full"


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "holds no settings"),
        ("- a\n", "holds no settings"),
        ("seed: 1\nseed: 2\n", "`seed` is set twice in line 2"),
        ("a: [\n", "is not valid YAML"),
        ("1: 2\n", "`1` is not a setting's name"),
        ("a: !!python/object/apply:os.getcwd []\n", "could not determine a constructor"),
        ("version: 1\nfamily: sd15\n", "`data` is missing; set it"),
        ("family: sd15\n", "`version` is missing"),
    ],
)
def test_files_that_are_no_config(load, text, sentence):
    assert sentence in complaint(load, text)


def test_a_missing_file_and_one_that_is_not_text(tmp_path):
    with pytest.raises(UserError, match="cannot be read"):
        config_file.load_config(tmp_path / "none.yaml")
    (tmp_path / "bin.yaml").write_bytes(b"\xff\xfe\x00\x01\x80")
    with pytest.raises(UserError, match="not text in UTF-8"):
        config_file.load_config(tmp_path / "bin.yaml")


@pytest.mark.parametrize("family", FAMILIES)
def test_the_template_is_valid_and_has_every_setting(load, family):
    text = config_file.config_template(family)
    config = load(text)
    assert config == config_file.parse_config({"version": 1, "family": family, **config_file.PLACEHOLDERS})
    raw = yaml.safe_load(text)
    assert set(raw) == set(RunConfig.model_fields)
    assert set(raw["data"]) == set(DataConfig.model_fields)
    assert all("#" in line for line in text.splitlines() if line)


def test_the_template_leaves_open_what_follows_from_other_settings(load):
    text = config_file.config_template("sdxl").replace("runs/my-pair", "elsewhere")
    config = load(text, "training_method=full")
    assert config.cache_dir == Path("elsewhere/cache")
    assert config.learning_rate == 5e-7
    assert set(RunConfig.model_fields) >= DERIVED


def test_an_unknown_family_gets_no_template():
    with pytest.raises(UserError, match="did you mean sdxl"):
        config_file.config_template("sdlx")


def test_the_resolved_copy_reads_back_equal(load, tmp_path):
    config = load(
        MINIMAL, "learning_rate=3.84e-7", "mixed_precision=no", "sample_prompts=['été: 1', no]", "data.strict=true"
    )
    config_file.save_resolved(config, tmp_path / "resolved.yaml")
    again = config_file.load_config(tmp_path / "resolved.yaml")
    assert again == config
    assert again.sha256() == config.sha256() != load(MINIMAL).sha256()
    assert config.sha256() in (tmp_path / "resolved.yaml").read_text(encoding="utf-8")


def test_a_failed_write_leaves_the_old_file(tmp_path, load, monkeypatch):
    config, path = load(MINIMAL), tmp_path / "resolved.yaml"
    config_file.save_resolved(config, path)
    before = path.read_bytes()

    def full_disk(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(OSError, match="No space"):
        config_file.save_resolved(load(MINIMAL, "seed=3"), path)
    assert path.read_bytes() == before
    assert sorted(file.name for file in tmp_path.iterdir()) == ["resolved.yaml", "run.yaml"]


def test_a_config_is_read_without_torch(tmp_path):
    (tmp_path / "run.yaml").write_text(MINIMAL, encoding="utf-8")
    code = (
        "import sys; from chats_train.settings.config_file import load_config; load_config(sys.argv[1]); assert "
        "'torch' not in sys.modules"
    )
    root = Path(__file__).resolve().parents[2]
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "run.yaml")], cwd=root, check=True)


def test_every_record_has_its_adapter():
    """A family's record stands alone, so that help and config errors come at once; here it meets the class it names."""
    from chats_train.families import adapter_of
    from chats_train.layouts.formats import file_format

    for name, facts in FAMILIES.items():
        adapter = adapter_of(facts)
        assert adapter.facts is facts
        assert file_format(name).facts is facts
        assert {facts.denoiser_part, "vae", *facts.text_parts} == set(adapter.part_classes())
        assert next(iter(facts.prefixes)) == facts.denoiser_part
