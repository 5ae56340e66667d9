"""The pages that people read, held against the tree: length, links, the map of the rooms; and what files say of
themselves."""

import ast
import re
from collections import Counter
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
README, DEVELOPMENT = ROOT / "README.md", ROOT / "docs" / "development.md"
HELP = ROOT / "web" / "docs"
PAGES = [
    README,
    ROOT / "CHANGELOG.md",
    *(page for folder in ("docs", "benchmarks", "tests", "web/docs") for page in sorted((ROOT / folder).rglob("*.md"))),
]
MOST_WORDS = 1000
HOUSE = ("chats", "nodes", "chats_train", "benchmarks", "tests")
FENCE = re.compile(r"^ *```")
# An address in round brackets behind a text in square ones, or in HTML.
LINK = re.compile(r"\]\(([^)\s]+)\)|\b(?:src|href)=\"([^\"]+)\"")
# A span may go on in the next line, but not in the next paragraph.
CODE = re.compile(r"`(?:[^`\n]|\n(?!\n))+`")
FOREIGN = re.compile(r"[a-z]+:")
HEADING = re.compile(r"#{1,6} +(.*?)[ #]*$")
ROOM = re.compile(r"\| \[`([\w/]+)/`\]\(\.\./([\w/]+)\) \| (\S.*) \|$")


def name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@cache
def prose(page: Path) -> tuple[str, ...]:
    """The lines of a page that are in no fenced block."""
    lines, fenced = [], False
    for line in page.read_text(encoding="utf-8").splitlines():
        if FENCE.match(line):
            fenced = not fenced
        elif not fenced:
            lines.append(line)
    return tuple(lines)


@cache
def links(page: Path) -> tuple[str, ...]:
    """The relative addresses on a page; what stands in a code span is no link."""
    text = CODE.sub("", "\n".join(prose(page)))
    found = (markdown or html for markdown, html in LINK.findall(text))
    return tuple(address for address in found if not FOREIGN.match(address))


@cache
def anchors(page: Path) -> frozenset[str]:
    """The names that GitHub gives to a page's headings: in small letters, without marks, hyphens for spaces, and a
    number from the second of a name on."""
    seen: Counter[str] = Counter()
    found = set()
    for line in prose(page):
        if heading := HEADING.match(line):
            text = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading[1])
            slug = re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-")
            found.add(f"{slug}-{seen[slug]}" if seen[slug] else slug)
            seen[slug] += 1
    return frozenset(found)


def target(page: Path, address: str) -> Path:
    """The file that an address leads to. ComfyUI reads the paths of a help page from `docs/` on, in every language."""
    folder = HELP if page.is_relative_to(HELP) else page.parent
    path = address.partition("#")[0]
    return (folder / path).resolve() if path else page


def rooms() -> list[str]:
    """Every folder of the house with Python files."""
    return sorted({name(file.parent) for part in HOUSE for file in (ROOT / part).rglob("*.py")})


def map_of_the_rooms() -> list[tuple[str, str, str]]:
    """The lines of the map: the room, where its link leads, and what is said of it."""
    return [line.groups() for line in map(ROOM.match, prose(DEVELOPMENT)) if line]


def test_the_readme_is_read_in_a_minute():
    words = len(" ".join(prose(README)).split())
    assert words <= MOST_WORDS, f"README.md has {words} words outside of code"


def test_the_readme_names_both_commands_of_developers():
    text = README.read_text(encoding="utf-8")
    assert '\npip install -e ".[train,test]" && pytest\n' in text
    assert "\nbash .ci/run\n" in text
    assert (ROOT / ".ci" / "run").is_file()


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_lead_somewhere(page):
    broken = []
    for address in links(page):
        path, anchor = target(page, address), address.partition("#")[2]
        if not path.is_relative_to(ROOT) or not path.exists():
            broken.append(f"{address}: no such file")
        elif anchor and (path.suffix != ".md" or anchor not in anchors(path)):
            broken.append(f"{address}: no such heading")
    assert not broken


def test_every_page_of_docs_is_reached_from_the_readme():
    reached, waiting = set(), [README]
    while waiting:
        page = waiting.pop()
        reached.add(page)
        waiting += {target(page, address) for address in links(page) if address.endswith(".md")} - reached
    pages = set((ROOT / "docs").rglob("*.md"))
    assert pages
    assert not sorted(map(name, pages - reached))


def test_the_map_of_the_rooms_is_the_tree():
    lines = map_of_the_rooms()
    assert sorted(room for room, _, _ in lines) == rooms()
    assert [link for _, link, _ in lines] == [room for room, _, _ in lines]


def test_the_order_of_the_trainers_rooms_names_each_once():
    (order,) = (line for line in DEVELOPMENT.read_text(encoding="utf-8").splitlines() if line.startswith("support < "))
    inside = {room.split("/")[1] for room in rooms() if room.startswith("chats_train/")}
    assert sorted(order.split(" < ")) == sorted(inside)


@pytest.mark.parametrize("part", HOUSE)
def test_every_file_says_its_one_idea_first(part):
    silent = []
    for file in sorted((ROOT / part).rglob("*.py")):
        said = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or ""
        first, _, _ = said.partition("\n\n")
        if not first.strip().endswith((".", ":", "…")):
            silent.append(name(file))
    assert not silent
