"""Reading, overriding, saving and starting a config file. Its settings are in ``config``."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Hashable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError

from chats.files import write_text
from chats.words import LONGEST, shown, shown_error

from ..support.errors import UserError
from ..support.paths import PathError
from .config import CONFIG_VERSION, DERIVED, RunConfig
from .facts import FAMILIES
from .other_names import other_name

# Headings of the template, above the field that each begins with.
HEADINGS = {
    "pretrained_model": "The base model",
    "data": "Preference pairs",
    "objective": "Objective",
    "training_method": "What is trained",
    "resolution": "Images",
    "max_train_steps": "Length",
    "learning_rate": "Optimizer",
    "mixed_precision": "Precision and memory",
    "checkpointing_steps": "Checkpoints",
    "validation_pairs": "Measurements and previews",
}
PLACEHOLDERS = {
    "output_dir": "runs/my-pair",
    "pretrained_model": "models/base.safetensors",
    "data": {"path": "my-pairs"},
}
COMMENT_COLUMN = 46
# Characters that neither a path nor a file in UTF-8 can hold: NUL, and halves of surrogate pairs.
UNWRITABLE = re.compile(r"[\x00\ud800-\udfff]")
# What pydantic's kinds of error ask for, where its own words are not for people.
WORDS = {
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "finite_number": "a finite number",
    "bool_type": "true or false",
    "string_type": "text",
    "list_type": "a list",
    "path_type": "a path",
    "model_type": "a group of settings",
}


# All that PyYAML's constructors raise for a scalar that is not what its tag says.
SCALAR_ERRORS = (ValueError, KeyError, TypeError, AttributeError, IndexError, OverflowError)


class _Loader(yaml.SafeLoader):
    """YAML with the scalars of version 1.2, so that ``no`` is a word and ``1e-5`` a number, and no key twice."""

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            value = super().construct_object(node, deep)
        except SCALAR_ERRORS as error:
            reason = f"`{shown(node.value)}` is no {node.tag.rpartition(':')[2]}"
            raise yaml.constructor.ConstructorError(None, None, reason, node.start_mark) from error
        if isinstance(value, str) and UNWRITABLE.search(value):
            reason = f"`{shown(value)}` has a character that is no text"
            raise yaml.constructor.ConstructorError(None, None, reason, node.start_mark)
        return value

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, str):
                raise yaml.constructor.ConstructorError(
                    None, None, f"`{shown(key)}` is not a setting's name", key_node.start_mark
                )
            if key in seen:
                raise yaml.constructor.ConstructorError(None, None, f"`{shown(key)}` is set twice", key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep)


_REDEFINED = {"tag:yaml.org,2002:bool", "tag:yaml.org,2002:float", "tag:yaml.org,2002:timestamp"}
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag not in _REDEFINED]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:bool", re.compile(r"^(true|True|TRUE|false|False|FALSE)$"), list("tTfF")
)
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(
        r"^([-+]?(\.[0-9]+|[0-9]+\.[0-9]*|[0-9]+(?=[eE]))([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN))$"
    ),
    list("-+0123456789."),
)


def load_config(path: str | os.PathLike[str], overrides: Iterable[str] = ()) -> RunConfig:
    """Reads and checks a config file.

    Args:
        path: the YAML file.
        overrides: ``key=value`` each, the key dotted where settings are nested (``data.strict=true``), the value a YAML
            scalar.

    Raises:
        UserError: when the file cannot be read or a setting is wrong, one sentence for each.
    """
    return config_of(_read(Path(path)), overrides)


def config_of(raw: Mapping[str, Any], overrides: Iterable[str] = ()) -> RunConfig:
    """A config of settings that are in no file, with overrides as :func:`load_config` takes them.

    Raises:
        UserError: when a setting is wrong, one sentence for each.
    """
    settings = dict(raw)
    for override in overrides:
        _apply(settings, override)
    return parse_config(settings)


def parse_config(raw: Mapping[str, Any]) -> RunConfig:
    """Checks the settings of a run and fills in the defaults.

    Raises:
        UserError: one sentence for each wrong setting.
    """
    try:
        return RunConfig.model_validate(dict(raw))
    except ValidationError as error:
        raise UserError("\n".join(_sentence(details) for details in error.errors())) from None


def save_resolved(config: RunConfig, path: str | os.PathLike[str]) -> None:
    """Writes the config with every default filled in, whole or not at all; :func:`load_config` reads it back as it
    is."""
    settings = yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
    write_text(path, f"# All settings of the run, defaults filled in. SHA-256 {config.sha256()}\n{settings}")


def config_template(family: str) -> str:
    """A commented YAML with every setting at its default; it is valid, and works once its three paths are filled in.

    Raises:
        UserError: when the family is not known.
    """
    if family not in FAMILIES:
        raise UserError(
            f"family `{family}` is not known; choose one of {', '.join(FAMILIES)}{_nearest(family, FAMILIES)}"
        )
    config = parse_config({"version": CONFIG_VERSION, "family": family, **PLACEHOLDERS})
    title = (
        f"# A pair of {FAMILIES[family].title} models. Set `output_dir`, `pretrained_model` and `data`; the "
        "rest are defaults.\n"
    )
    return title + "\n".join(_template_lines(config)) + "\n"


def _template_lines(section: BaseModel, indent: str = "") -> Iterator[str]:
    for name, field in type(section).model_fields.items():
        if not indent and name in HEADINGS:
            yield f"\n# {HEADINGS[name]}"
        # What follows from other settings stays open, so that changing those is enough.
        value = None if name in DERIVED - {"resolution"} else getattr(section, name)
        if isinstance(value, BaseModel):
            yield f"{indent + name + ':':<{COMMENT_COLUMN}}# {field.description}"
            yield from _template_lines(value, indent + "  ")
        else:
            # One line per setting; `...` is what PyYAML puts below a bare scalar.
            plain = os.fspath(value) if isinstance(value, Path) else value
            text = yaml.safe_dump(plain, default_flow_style=True, width=1000).removesuffix("...\n").strip()
            yield f"{f'{indent}{name}: {text}':<{COMMENT_COLUMN}}# {field.description}"


def _read(path: Path) -> dict[str, Any]:
    try:
        raw = _parsed(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(
            f"the config {path} cannot be read ({error.strerror}); `python -m chats_train init` makes one"
        ) from error
    except UnicodeDecodeError as error:
        raise UserError(f"the config {path} is not text in UTF-8; save it as such") from error
    except yaml.YAMLError as error:
        # Double quotes make a backslash the beginning of an escape, of which most letters are none.
        advice = "; put a path with backslashes in single quotes" if "escape" in str(error) else ""
        raise UserError(f"the config {path} is not valid YAML: {_yaml_reason(error)}{advice}") from error
    if not isinstance(raw, dict):
        raise UserError(f"the config {path} holds no settings; `python -m chats_train init` makes one")
    return raw


def _parsed(text: str) -> Any:
    try:
        return yaml.load(text, Loader=_Loader)
    except RecursionError as error:
        raise yaml.YAMLError("it is nested too deep") from error


def _yaml_reason(error: yaml.YAMLError) -> str:
    if not isinstance(error, yaml.MarkedYAMLError) or error.problem_mark is None:
        return shown_error(error)
    return f"{shown(error.problem, 3 * LONGEST)} in line {error.problem_mark.line + 1}"


def _apply(raw: dict[str, Any], override: str) -> None:
    """One ``--set key=value`` on the settings as read."""
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise UserError(f"`--set {shown(override)}` has no `=`; write it as `--set name=value`")
    try:
        value = _parsed(text)
    except yaml.YAMLError as error:
        raise UserError(
            f"`--set {shown(override)}`: the value is not valid YAML ({_yaml_reason(error)}); put quotes around it"
        ) from error
    *parents, name = key.split(".")
    section = raw
    for depth, parent in enumerate(parents):
        if section.get(parent) is None:
            section[parent] = {}
        section = section[parent]
        if not isinstance(section, dict):
            raise UserError(
                f"`--set {shown(override)}`: `{'.'.join(parents[: depth + 1])}` is a single value and has no `{name}`; "
                "leave that out"
            )
    section[name] = value


def _sentence(details: Mapping[str, Any]) -> str:
    """One of pydantic's errors as a sentence that names the setting, its value and the way out."""
    location, kind, value = details["loc"], details["type"], details.get("input")
    name = shown(".".join(str(part) for part in location))
    if kind == "value_error":
        error = details["ctx"]["error"]
        return f"`{name}` is `{shown(value)}`, {error}" if isinstance(error, PathError) else str(error)
    if kind == "extra_forbidden":
        return f"`{name}` is not a setting{_suggestion(location)}"
    field = _field(location)
    description = f" ({field.description})" if field is not None and field.description else ""
    if kind == "missing":
        return f"`{name}` is missing; set it{description}"
    stated = "empty (null)" if value is None else f"`{shown(value)}`"
    if kind == "literal_error":
        words = [str(word) for word in _literal_words(field.annotation)]
        return f"`{name}` is {stated}; it should be one of {', '.join(words)}{_nearest(value, words)}"
    should = WORDS.get(kind) or details["msg"].removeprefix("Input should be ")
    has_default = field is not None and isinstance(field.default, bool | int | float | str)
    return (
        f"`{name}` is {stated}; it should be "
        f"{should}{f', such as {shown(field.default)}' if has_default else ''}{description}"
    )


def _literal_words(annotation: Any) -> list[Any]:
    return [
        word
        for arg in get_args(annotation)
        if arg is not type(None)
        for word in (_literal_words(arg) if get_args(arg) else [arg])
    ]


def _field(location: tuple[Any, ...]) -> Any:
    """The field at a location of the config, or None inside of a list and where there is none."""
    model: Any = RunConfig
    field = None
    for part in location:
        fields = getattr(model, "model_fields", {})
        field = fields.get(part)
        if field is None:
            return None
        model = field.annotation
    return field


def _suggestion(location: tuple[Any, ...]) -> str:
    """The way out for an unknown key: what another trainer means by it, else the nearest name of its section, then of
    the whole config."""
    if known := other_name(str(location[-1])):
        return f"; {known}"
    section = _field(location[:-1]).annotation if location[:-1] else RunConfig
    prefix = ".".join(location[:-1])
    near = difflib.get_close_matches(shown(location[-1]), section.model_fields, n=1)
    if near:
        return f"; did you mean `{f'{prefix}.' if prefix else ''}{near[0]}`?"
    by_last = {name.rpartition(".")[2]: name for name in _all_names(RunConfig)}
    near = difflib.get_close_matches(shown(location[-1]), by_last, n=1)
    return (
        f"; did you mean `{by_last[near[0]]}`?"
        if near
        else "; remove it (`python -m chats_train init` lists all settings)"
    )


def _all_names(section: type[BaseModel], prefix: str = "") -> Iterator[str]:
    for name, field in section.model_fields.items():
        yield prefix + name
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from _all_names(field.annotation, f"{prefix}{name}.")


def _nearest(value: Any, words: Iterable[str]) -> str:
    near = difflib.get_close_matches(shown(value), list(words), n=1)
    return f"; did you mean {near[0]}?" if near else ""
