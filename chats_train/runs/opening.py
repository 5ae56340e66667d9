"""From a config to the parts of a run: the one place where settings become arguments."""

from __future__ import annotations

import torch

from ..families import Family, load_family
from ..settings.config import RunConfig

DTYPES = {"no": torch.float32, "fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def open_family(config: RunConfig, device: torch.device | str | None = None) -> Family:
    """The model family over the run's base; only headers and configurations are read yet.

    Args:
        config: the run.
        device: of the encoders; by default the GPU where there is one.
    """
    return load_family(
        config.family,
        config.pretrained_model,
        encoders=config.encoders,
        tokenizer=config.tokenizer,
        configs=config.configs,
        # A frozen base under adapters needs no more precision than the forward pass has.
        dtype=DTYPES[config.mixed_precision if config.training_method == "lora" else config.weight_dtype],
        encoder_dtype=DTYPES[config.mixed_precision],
        device=device or ("cuda" if torch.cuda.is_available() else "cpu"),
        prediction_type=config.prediction_type,
        null_prompt=config.null_prompt,
    )


def settled(config: RunConfig, family: Family) -> RunConfig:
    """The config with what the base states filled in; what is exported names it."""
    return config.model_copy(update={"prediction_type": family.prediction_type, "null_prompt": family.null_prompt_kind})
