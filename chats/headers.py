"""A dataclass as entries of a safetensors header, and back: how this pack's files say what they are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any, Literal, get_args, get_origin, get_type_hints

from .words import shown

FORMAT_VERSION = 1


class PairError(ValueError):
    """A file that cannot be used, or two files that are not a pair; the message is one sentence for the user."""


def header_entries(metadata: Any, prefix: str) -> dict[str, str]:
    """The fields of a dataclass as header entries ``<prefix><field>`` → string; what is None is left out."""
    values = {field.name: getattr(metadata, field.name) for field in fields(metadata)}
    return {prefix + name: str(value) for name, value in values.items() if value is not None}


def parsed_fields(kind: type, stated: Mapping[str, str], prefix: str, name: str) -> dict[str, Any]:
    """What a header states of a dataclass's fields, each as its type; keys that it does not know are left out.

    Args:
        stated: header values by key, without ``prefix``.
        name: how to call the file in an error.

    Raises:
        PairError: when a value is not one this version understands.
    """
    hints = get_type_hints(kind)
    # Of the types that the fields state, which only `_parse` sees to.
    known: dict[str, Any] = {
        key: _parse(name, prefix + key, value, hints[key]) for key, value in stated.items() if key in hints
    }
    if (version := known.get("format_version", 0)) > FORMAT_VERSION:
        raise PairError(
            f"{name} has `{prefix}format_version` {version}, this pack reads up to {FORMAT_VERSION}; update "
            "ComfyUI-CHATS"
        )
    return known


def _parse(name: str, key: str, value: str, hint: Any) -> object:
    """One header value as the type of its field: a number, any text, or one of some words; None may stand beside it."""
    kind = hint if get_origin(hint) is Literal else (get_args(hint) or (hint,))[0]
    words = get_args(kind)
    try:
        parsed = value if words else kind(value)
    except ValueError:
        parsed = None
    if parsed is None or parsed != parsed or (words and value not in words):
        expected = " or ".join(f"`{word}`" for word in words) if words else f"a number ({kind.__name__})"
        raise PairError(
            f"{name} has `{key}` = `{shown(value)}`, expected {expected}; it was not written by this pack: "
            "export it again"
        )
    return parsed
