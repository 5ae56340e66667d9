"""What is sampled and compared: the checkpoint of a run here, or the files of a pair that was made elsewhere."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from chats.objective import OBJECTIVES

from ..families import Family
from ..settings.config import RunConfig
from .members import Members
from .trained import open_trained, trained_members


@dataclass(frozen=True)
class Subject:
    """A pair, or one model, over its base.

    Attributes:
        name: for people.
        config: the base and how to sample; of files made elsewhere, what can be known of them.
        weights_sha256: changes with the members' weights.
        models: 2, or 1 for a preferred model alone.
        members: loads them, with the base as their reference.
        is_run: whether it is a run here, whose folder can keep a verdict.
    """

    name: str
    config: RunConfig
    weights_sha256: str
    models: int
    members: Callable[[Family], Members]
    is_run: bool


def run_subject(config: RunConfig, wanted: str) -> Subject:
    """A checkpoint (``latest`` or a folder) of a run.

    Raises:
        UserError: when there is no such checkpoint.
    """
    checkpoint = open_trained(config, wanted)
    return Subject(
        f"{checkpoint.path.name} of {config.output_dir.name}",
        config,
        checkpoint.weights_sha256,
        OBJECTIVES[config.objective].models,
        lambda family: trained_members(config, family, checkpoint),
        is_run=True,
    )
