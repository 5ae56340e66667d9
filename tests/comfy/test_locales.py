"""The translations of the nodes' texts, which the front end puts over those of the Python schema."""

import json
import re

import describe_nodes
import pytest

# Braces, @ and | have a meaning in the front end's messages; one that does not parse shows as its key or not at all.
MESSAGE_SYNTAX = re.compile(r"[{}@|]")


def leaves(texts: dict, path: tuple[str, ...] = ()) -> dict[tuple[str, ...], str]:
    """Every text by its path of keys."""
    found = {}
    for key, value in texts.items():
        found |= leaves(value, (*path, key)) if isinstance(value, dict) else {(*path, key): value}
    return found


@pytest.fixture(scope="module")
def english() -> dict:
    return json.loads(describe_nodes.ENGLISH.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def chinese() -> dict:
    return json.loads(describe_nodes.CHINESE.read_text(encoding="utf-8"))


def test_english_is_the_schema_to_the_letter(pack, english):
    expected = leaves(describe_nodes.english_texts(describe_nodes.node_infos(pack)))
    stated = leaves(english)
    differing = sorted(
        ".".join(path) for path in expected.keys() | stated.keys() if expected.get(path) != stated.get(path)
    )
    assert not differing, (
        f"locales/en differs in {differing}; write it anew: run tests/comfy/describe_nodes.py with ComfyUI's Python"
    )


def test_chinese_has_the_same_keys(english, chinese):
    missing, unknown = leaves(english).keys() - leaves(chinese).keys(), leaves(chinese).keys() - leaves(english).keys()
    assert not missing, f"locales/zh lacks {sorted(map('.'.join, missing))}"
    assert not unknown, f"locales/zh has {sorted(map('.'.join, unknown))}, which no node has"


def test_every_text_is_one_that_the_front_end_can_show(english, chinese):
    for path, text in [*leaves(english).items(), *leaves(chinese).items()]:
        assert isinstance(text, str)
        assert text.strip(), f"{path} is empty"
        assert not MESSAGE_SYNTAX.search(text), f"{path}: {text!r} holds a character of the front end's message syntax"


def test_descriptions_and_tooltips_are_translated(english, chinese):
    for path, text in leaves(chinese).items():
        if path[-1] in ("display_name", "description", "tooltip"):
            assert re.search(r"[\u4e00-\u9fff]", text), f"{path} is not translated: {text!r}"
            assert text != leaves(english)[path]
