"""Out of memory as a sentence: what did not fit, and which setting makes it smaller."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import comfy.model_management

from .saved_run import RunError

# What is kept of the allocator's own words.
MOST_CHARACTERS = 120
TRAINING = (
    "the graphics card's memory does not hold a step of training ({}); the steps before are kept. Lower `resolution`, "
    "then `rank`, or choose attention in `layers` (each begins another run: choose another `name`), or close what else "
    "uses the card and queue again"
)
ENCODING = (
    "the graphics card's memory does not hold the encoding of a picture or a prompt ({}); what was encoded is kept. "
    "Lower `resolution`, or close what else uses the card and queue again"
)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that the device has no room left, in any of torch's ways that this ComfyUI knows."""
    known = getattr(comfy.model_management, "is_oom", None)
    return known(error) if known else isinstance(error, comfy.model_management.OOM_EXCEPTION)


@contextmanager
def enough_memory_for(sentence: str) -> Iterator[None]:
    """Within the block, a device without room left is an error with a sentence.

    Args:
        sentence: what did not fit, {} for torch's own words, and the way out.

    Raises:
        RunError: in place of torch's error.
    """
    try:
        yield
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        raise RunError(sentence.format(" ".join(str(error).split())[:MOST_CHARACTERS])) from error
