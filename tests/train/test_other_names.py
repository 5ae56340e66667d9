"""Settings under the names that other trainers have for them."""

import pytest

from chats_train.settings.config import RunConfig
from chats_train.settings.config_file import _all_names, parse_config
from chats_train.settings.other_names import OTHERS, REASONS
from chats_train.support.errors import UserError

RAW = {"version": 1, "family": "sd15", "output_dir": "out", "pretrained_model": "b", "data": {"path": "pairs"}}
OURS = {
    "lr": "learning_rate",
    "unet_lr": "learning_rate",
    "rank": "network_rank",
    "lora_rank": "network_rank",
    "network_dim": "network_rank",
    "lora_alpha": "network_alpha",
    "train_data_dir": "data.path",
    "instance_data_dir": "data.path",
    "dataset_name": "data.hub_id",
    "caption_column": "data.columns.prompt",
    "pretrained_model_name_or_path": "pretrained_model",
    "batch_size": "train_batch_size",
    "save_every_n_steps": "checkpointing_steps",
    "save_last_n_steps": "checkpoints_total_limit",
    "optimizer_type": "optimizer",
    "validation_prompt": "sample_prompts",
    "steps": "max_train_steps",
    "resume": "resume_from_checkpoint",
    "log_with": "report_to",
    "Batch-Size": "train_batch_size",
}
SENTENCES = {
    "num_train_epochs": "the length is counted in optimizer steps; set `max_train_steps`",
    "max_train_epochs": "set `max_train_steps`",
    "beta_dpo": "did you mean `beta`? Diffusion-DPO's code halves its own, so 5000 there is 2500 here",
    "output_name": "the pair is named after the last folder of `output_dir`; set that",
    "clip_skip": "that follows from the base's own files; leave it out",
    "noise_offset": "the objective is the paper's, whose noise and timesteps no setting changes; leave it out",
    "min_snr_gamma": "leave it out",
    "use_8bit_adam": "set `optimizer: adamw8bit`",
    "xformers": "PyTorch's own attention is always used; leave it out",
    "enable_xformers_memory_efficient_attention": "leave it out",
    "text_encoder_lr": "text encoders are never trained here, as both members share them; leave it out",
    "v_parameterization": "set `prediction_type: v_prediction`",
    "cache_latents": "are always cached in `cache_dir`",
    "shuffle_caption": "captions are taken as they are",
    "push_to_hub": "nothing is uploaded; leave it out",
    "network_module": "did you mean `training_method`?",
}


def said(**settings):
    with pytest.raises(UserError) as caught:
        parse_config({**RAW, **settings})
    return str(caught.value)


@pytest.mark.parametrize("name", OURS)
def test_the_right_one_is_suggested(name):
    assert said(**{name: 1}) == f"`{name}` is not a setting; did you mean `{OURS[name]}`?"


@pytest.mark.parametrize("name", SENTENCES)
def test_where_there_is_none_a_sentence_says_why(name):
    sentence = said(**{name: 1})
    assert sentence.startswith(f"`{name}` is not a setting; ")
    assert sentence.endswith(SENTENCES[name]) or SENTENCES[name] in sentence
    assert "\n" not in sentence


def test_a_name_inside_of_a_section_is_known_too():
    assert said(data={"path": "x", "caption_column": "y"}) == (
        "`data.caption_column` is not a setting; did you mean `data.columns.prompt`?"
    )


def test_the_table_names_real_settings_and_none_of_ours():
    ours = {*_all_names(RunConfig), "data"}
    others = [name for names in (*OTHERS.values(), *REASONS.values()) for name in names.split()]
    assert set(OTHERS) <= ours
    assert not ours & set(others)
    assert sorted(others) == sorted(set(others))
    assert all(name == name.lower() and "-" not in name for name in others)


def test_names_that_are_ours_too_are_taken():
    shared = {"max_train_steps": 5, "checkpointing_steps": 5, "gradient_checkpointing": False, "seed": 3}
    config = parse_config({**RAW, **shared})
    assert {name: getattr(config, name) for name in shared} == shared
