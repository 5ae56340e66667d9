"""The rating dialog's texts: both languages have what the scripts ask for and the server says, and nothing else."""

import ast
import json
import re
from pathlib import Path

import pytest

from chats.taste.names import NotThere
from chats.taste.sentence import Sentence

ROOT = Path(__file__).resolve().parents[1]
SOURCE = "\n".join(path.read_text(encoding="utf-8") for path in sorted((ROOT / "web" / "rating").glob("*.js")))
# Made of a side: `${side}Picture`.
COMPOSED = {"leftPicture", "rightPicture"}
# What makes a sentence of the server's, and which of its arguments the key is.
SAYING = {"Sentence": 0, "TasteError": 0, "NotThere": 0, "Conflict": 0, "NotWritten": 0, "Refused": 1}
PLURAL = re.compile(r"\{(\w+), plural, one \{[^{}]*\} other \{[^{}]*\}\}")


def texts(language: str, file: str = "main.json", section: str = "chatsRating") -> dict[str, str]:
    content = json.loads((ROOT / "locales" / language / file).read_text(encoding="utf-8"))
    return content[section] if file == "main.json" else {name: it["label"] for name, it in content.items()}


def places(text: str) -> list[str]:
    """The names of what stands in a text."""
    return sorted(set(re.findall(r"\{(\w+)\}", PLURAL.sub(r"{\1}", text))))


def said_by_the_server() -> dict[str, str]:
    """By its key, each sentence that the Python of rating makes."""
    found = {}
    for path in [*(ROOT / "chats" / "taste").glob("*.py"), *(ROOT / "nodes" / "rating").glob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call) or getattr(node.func, "id", None) not in SAYING:
                continue
            key, english = node.args[SAYING[node.func.id] :]
            if isinstance(key, ast.Name):
                continue  # where an error makes its sentence of what it was given
            assert isinstance(english, ast.Constant), f"{path}:{node.lineno}: no text that can be translated"
            assert found.setdefault(key.value, english.value) == english.value, f"{key.value} says two things"
    return found


def test_the_scripts_ask_for_these_texts():
    asked = set(re.findall(r"""\b(?:t|say)\("(\w+)\"""", SOURCE))
    assert asked, "no text is asked for: has the way to ask changed?"
    assert asked <= texts("en").keys()
    unused = {key for key in texts("en") if f'"{key}"' not in SOURCE} - COMPOSED
    assert not unused


def test_the_server_s_sentences_are_the_english_texts():
    said = said_by_the_server()
    assert len(said) > 20, "hardly a sentence is found: has the way to say one changed?"
    assert texts("en", section="chatsRatingServer") == said


@pytest.mark.parametrize(
    ("file", "section"),
    [("main.json", "chatsRating"), ("main.json", "chatsRatingServer"), ("commands.json", "")],
    ids=["dialog", "server", "commands"],
)
def test_chinese_says_the_same(file, section):
    english, chinese = texts("en", file, section), texts("zh", file, section)
    assert chinese.keys() == english.keys()
    for key, text in english.items():
        assert places(chinese[key]) == places(text), key
        assert re.search(r"[\u4e00-\u9fff]", chinese[key]), f"{key} is not translated: {chinese[key]!r}"


def test_a_count_before_a_word_knows_one_from_many():
    for key, text in texts("en").items():
        plain = PLURAL.sub("", text)
        assert not re.search(r"\{\w+\} (pictures?|prompts?|pairs?|ratings?|times?)\b", plain), key


def test_a_sentence_takes_whatever_stands_in_it():
    sentence = Sentence("key", "`{name}` of {count}", name="{count} {0} %s", count=3)
    assert sentence == "`{count} {0} %s` of 3"
    assert json.loads(json.dumps(sentence)) == sentence
    assert (sentence.key, sentence.values) == ("key", {"name": "{count} {0} %s", "count": 3})
    error = NotThere("key", "no {name}", name="a")
    assert str(error) == error.sentence == "no a"


def test_scripts_put_foreign_text_in_as_text():
    """Prompts, names and answers are other people's: no script makes HTML of a string, or runs one."""
    assert not re.findall(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\b|new Function", SOURCE)
