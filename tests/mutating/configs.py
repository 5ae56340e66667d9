"""Damaged configs, read by `check`: what `init` writes with odd values, unknown and lost settings, broken YAML, and
YAML that does harm."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

from .cases import Case, command
from .workbench import Workbench

ODD_VALUES = [
    *(
        "",
        "null",
        "~",
        "[]",
        "{}",
        "true",
        "yes",
        "off",
        "-1",
        "0",
        "1",
        "2.5",
        "1e999",
        ".inf",
        "-.inf",
        ".nan",
        "1e-320",
        "0x10",
        "0o17",
    ),
    *(
        "1:30",
        "1_000",
        "9" * 30,
        "9" * 6000,
        "-0",
        "''",
        "'  '",
        '"\\0"',
        '"\\ud800"',
        '"\\x1b[31m"',
        '"a\\nb"',
        "a" * 5000,
        "ключ",
        "💥",
        "…",
    ),
    *(
        "[1, 2",
        "{a: b",
        "[[[[]]]]",
        "[a, a]",
        "{a: 1, a: 2}",
        "{1: 2}",
        "{? [a] : b}",
        "&a [*a]",
        "*nowhere",
        "!!python/object/apply:os.system [ls]",
    ),
    *(
        "!!python/name:os.system",
        "!!binary aGk=",
        "!!binary '*'",
        "!!set {a}",
        "!!omap [a: 1]",
        "!!timestamp 2001-13-45",
        "!!int x",
        "!!float x",
    ),
    *(
        "2001-13-45",
        "!custom x",
        "!!null x",
        "!!bool x",
        "@a",
        "`a`",
        "%a",
        "| text",
        "> text",
        "- a",
        "? a",
        ": a",
        "#",
        "'",
        '"',
        "sd15",
        "/",
    ),
    *(
        "/dev/null/x",
        "/dev/full",
        "/proc/self/mem",
        "../../..",
        "~nobody-here/x",
        "a/b",
        "owner/name",
        "lora",
        "chats",
        "64",
        "65",
        "100000",
    ),
    *("1000000000", "1e10", "63", "2", "8", "16", "bf16", "fp16", "full", "latest"),
]
ODD_KEYS = [
    "lerning_rate",
    "data.path",
    "1",
    "null",
    "true",
    "''",
    "? [a]",
    "? {a: b}",
    "<<",
    "'a\\0'",
    "version",
    "Version",
    "💥",
    "a" * 3000,
    "2001-01-01",
]
ODD_BYTES = [
    b"\x00",
    b"\xff",
    b"\xfe\xff",
    b"\t",
    b"\r",
    b":",
    b": ",
    b"- ",
    b"{",
    b"[",
    b"'",
    b'"',
    b"&",
    b"*",
    b"!",
    b"%",
    b"#",
    b"\xc2\x85",
    b"\xe2\x80\xa8",
    b"\n",
]
LAUGHS = "a0: &a0 [ha, ha, ha, ha, ha, ha, ha, ha, ha]\n" + "".join(
    f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 10)
)
MERGES = "m0: &m0 {a: 1}\n" + "".join(f"m{i}: &m{i} {{<<: [{', '.join([f'*m{i - 1}'] * 9)}]}}\n" for i in range(1, 10))


class Configs:
    """YAML files."""

    name = "configs"

    def __init__(self, workbench: Workbench):
        from chats_train.settings.config_file import config_template

        lines = config_template("sd15").splitlines()
        own = {key: value for key, value in workbench.settings.items() if not isinstance(value, dict)}
        self.lines = [self._filled_in(line, own, workbench) for line in lines]

    @staticmethod
    def _filled_in(line: str, own: dict, workbench: Workbench) -> str:
        key = line.partition(":")[0]
        if key == "  path":
            return f"  path: {workbench.pairs}"
        return f"{key}: {str(own[key]).lower() if isinstance(own[key], bool) else own[key]}" if key in own else line

    def make(self, rng: random.Random, folder: Path) -> Case:
        path = folder / "run.yaml"
        if rng.random() < 0.05:
            mutation = rng.choice(["folder in its place", "nothing in its place", "empty"])
            if mutation == "folder in its place":
                path.mkdir()
            elif mutation == "empty":
                path.write_bytes(rng.choice([b"", b"\n\n", b"# nothing\n", b"---\n...\n"]))
        else:
            mutate = rng.choice(MUTATIONS)
            mutation = mutate.__name__.replace("_", " ")
            path.write_bytes(mutate(rng, list(self.lines)))
        options: list[str] = []
        if rng.random() < 0.1:
            key = rng.choice(
                [line.partition(":")[0] for line in self.lines if line[:1].isalpha()] + ["", "data.path.x", "a.b.c"]
            )
            options, mutation = [f"--set={key}={rng.choice(ODD_VALUES)}"], f"{mutation}, and --set"
        return Case(mutation, path, {"check": lambda: command("check", str(path), *options)})


def odd_value(rng: random.Random, lines: list[str]) -> bytes:
    for _ in range(rng.choice([1, 1, 1, 2, 3])):
        at = _setting(rng, lines)
        lines[at] = f"{lines[at].partition(':')[0]}: {rng.choice(ODD_VALUES)}"
    return _text(lines)


def unknown_key(rng: random.Random, lines: list[str]) -> bytes:
    at = _setting(rng, lines)
    key, colon, rest = lines[at].partition(":")
    indent = key[: len(key) - len(key.lstrip())]
    lines[at] = rng.choice(
        [f"{indent}{rng.choice(ODD_KEYS)}: 1", key[:-1] + colon + rest, f"{key}{colon}{rest}\n{key}{colon}{rest}"]
    )
    return _text(lines)


def lost_lines(rng: random.Random, lines: list[str]) -> bytes:
    for _ in range(rng.choice([1, 1, 3, 30])):
        lines.pop(rng.randrange(len(lines)))
    return _text(lines)


def moved_line(rng: random.Random, lines: list[str]) -> bytes:
    """Also into another section, by its indentation."""
    at = _setting(rng, lines)
    line = lines.pop(at)
    lines.insert(rng.randrange(len(lines)), rng.choice([line, "  " + line, "\t" + line, line.lstrip(), " " + line]))
    return _text(lines)


def odd_bytes(rng: random.Random, lines: list[str]) -> bytes:
    text = bytearray(_text(lines))
    for _ in range(rng.randint(1, 5)):
        at = rng.randrange(len(text))
        text[at : at + rng.randint(0, 2)] = rng.choice(ODD_BYTES)
    return bytes(text)


def cut_off(rng: random.Random, lines: list[str]) -> bytes:
    text = _text(lines)
    return text[: rng.randrange(len(text))]


def other_encoding(rng: random.Random, lines: list[str]) -> bytes:
    text = "\n".join(lines).replace("null", "nüll", rng.randint(0, 1))
    return text.encode(rng.choice(["utf-16", "utf-16-le", "latin-1", "utf-8-sig", "utf-32"]), "replace")


def bomb(rng: random.Random, lines: list[str]) -> bytes:
    """Anchors that grow to billions, nesting without end, a number of many digits."""
    deep = rng.choice(
        ["[" * 20_000, "{a: " * 20_000, "- " * 20_000, "? " * 20_000, "&a " * 1000 + "x", "[" * 3000 + "]" * 3000]
    )
    key = rng.choice(["network_target_modules", "sample_prompts", "output_dir", "seed", "alpha", "data"])
    rest = [line for line in lines if not line.startswith((f"{key}:", "  "))]
    laughs = f"{LAUGHS}{key}: *a{rng.choice([3, 5, 9])}\n"
    odd = [
        laughs,
        laughs,
        f"{MERGES}{key}: *m9\n",
        f"{key}: {deep}\n",
        f"{key}: {'9' * 200_000}\n",
        f"{key}: 0x{'f' * 9000}\n",
    ]
    return rng.choice([*odd, f"{key}: &loop [*loop]\n", f"{key}: &loop {{a: *loop}}\n"]).encode() + _text(rest)


def other_document(rng: random.Random, lines: list[str]) -> bytes:
    documents = [
        "---\n",
        "--- x\n",
        "...\n",
        "%YAML 9.9\n---\n",
        "%TAG ! tag:x,2000:\n---\n",
        "- a\n",
        "just text\n",
        "42\n",
        "[1, 2]\n",
        "\ufeff",
    ]
    extra = rng.choice(documents).encode()
    return rng.choice([extra, extra + _text(lines), _text(lines) + extra])


MUTATIONS: list[Callable[[random.Random, list[str]], bytes]] = [
    *(odd_value, odd_value, odd_value, odd_value, unknown_key, lost_lines, moved_line, odd_bytes, odd_bytes, cut_off),
    *(other_encoding, bomb, other_document),
]


def _setting(rng: random.Random, lines: list[str]) -> int:
    return rng.choice([at for at, line in enumerate(lines) if ":" in line and not line.startswith("#")])


def _text(lines: list[str]) -> bytes:
    return ("\n".join(lines) + "\n").encode("utf-8", "surrogatepass")
