"""From a config to the parts of a run: the one place where settings become arguments."""

from __future__ import annotations

import sys

import torch

from chats.files import write_text
from chats.words import shown

from ..data import PairDataset, open_dataset
from ..families import Family, load_family
from ..settings.config import RunConfig
from ..support.dtypes import TORCH_DTYPES, forward_dtype
from ..support.errors import UserError
from ..support.paths import too_long
from .folder import PROBLEMS_FILE
from .members import DISPREFERRED


def open_family(config: RunConfig, device: torch.device | str | None = None) -> Family:
    """The model family over the run's base; only headers and configurations are read yet. What its user should know of
    the base goes to stderr.

    Args:
        config: the run.
        device: of the encoders; by default the GPU where there is one.

    Raises:
        UserError: for a base that cannot be trained as the family, and for folders whose files could not be written
            once the training is done.
    """
    _require_names_fit(config)
    passes = forward_dtype(config.mixed_precision)
    family = load_family(
        config.family,
        config.pretrained_model,
        encoders=config.encoders,
        tokenizer=config.tokenizer,
        configs=config.configs,
        # A frozen base under adapters needs no more precision than the forward pass has.
        dtype=passes if config.training_method == "lora" else TORCH_DTYPES[config.weight_dtype],
        encoder_dtype=passes,
        device=device or ("cuda" if torch.cuda.is_available() else "cpu"),
        prediction_type=config.prediction_type,
        null_prompt=config.null_prompt,
    )
    for note in family.notes:
        print(f"note: {note}", file=sys.stderr)
    return family


def _require_names_fit(config: RunConfig) -> None:
    """What is written hours from now, under names that follow from the folder's, must fit the file system."""
    output_dir = config.output_dir
    problems = {
        "output_dir": too_long(output_dir / f"{output_dir.name}_{DISPREFERRED}.safetensors", temporary=True),
        "cache_dir": too_long(config.cache_dir),
    }
    for setting, problem in problems.items():
        if problem is not None:
            raise UserError(
                f"`{setting}` is `{shown(getattr(config, setting))}`, where {problem}; choose a shorter name"
            )


def open_pairs(config: RunConfig, progress: bool = True) -> PairDataset:
    """The run's pairs. What is wrong with them is printed, and listed whole in a file of the run, before anything is
    trained on them."""
    dataset = open_dataset(config, progress)
    first, *others = dataset.report()
    print("\n".join([f"data: {first}", *others]))
    if dataset.problems:
        path = config.output_dir / PROBLEMS_FILE
        write_text(path, "".join(f"{problem}\n" for problem in dataset.problems))
        print(f"  all {len(dataset.problems)} problems are listed in {path}")
    return dataset


def settled(config: RunConfig, family: Family) -> RunConfig:
    """The config with what the base states filled in; what is exported names it."""
    return config.model_copy(update={"prediction_type": family.prediction_type, "null_prompt": family.null_prompt_kind})
