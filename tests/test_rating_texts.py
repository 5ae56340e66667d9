"""The rating dialog's texts: both languages have what the scripts ask for, and nothing else."""

import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SOURCE = "\n".join(path.read_text(encoding="utf-8") for path in sorted((ROOT / "web" / "rating").glob("*.js")))
# Made of a side: `${side}Picture`.
COMPOSED = {"leftPicture", "rightPicture"}


def texts(language: str, file: str = "main.json") -> dict[str, str]:
    content = json.loads((ROOT / "locales" / language / file).read_text(encoding="utf-8"))
    return content["chatsRating"] if file == "main.json" else {name: it["label"] for name, it in content.items()}


def test_the_scripts_ask_for_these_texts():
    asked = set(re.findall(r"""\b(?:t|say)\("(\w+)\"""", SOURCE))
    assert asked, "no text is asked for: has the way to ask changed?"
    assert asked <= texts("en").keys()
    unused = {key for key in texts("en") if f'"{key}"' not in SOURCE} - COMPOSED
    assert not unused


@pytest.mark.parametrize("file", ["main.json", "commands.json"])
def test_chinese_says_the_same(file):
    english, chinese = texts("en", file), texts("zh", file)
    assert chinese.keys() == english.keys()
    for key, text in english.items():
        assert sorted(re.findall(r"\{\w+\}", chinese[key])) == sorted(re.findall(r"\{\w+\}", text)), key
        assert re.search(r"[\u4e00-\u9fff]", chinese[key]), f"{key} is not translated: {chinese[key]!r}"


def test_scripts_put_foreign_text_in_as_text():
    """Prompts, names and answers are other people's: no script makes HTML of a string, or runs one."""
    assert not re.findall(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\b|new Function", SOURCE)
