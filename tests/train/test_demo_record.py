"""What the pages say of the demo, against the record of every picture that was counted."""

import json
import re
from pathlib import Path

import torch

from chats_train.demo.measure import Count, best, result_table, scales_table, verdicts
from chats_train.demo.world import prompt_sets


def test_what_the_pages_say_of_the_demo_is_what_was_counted():
    """The tables of the record, of the README and of the evidence, from every picture's right and taste."""
    root = Path(__file__).resolve().parents[2]
    record = json.loads((root / "benchmarks" / "miniature" / "demo.json").read_text(encoding="utf-8"))
    sides = {
        part: [
            [
                Count.of(each["guidance_scale"], torch.empty(0), said["prompts"], each["right"], each["taste"])
                for each in said[side]
            ]
            for side in ("base", "pair")
        ]
        for part, said in record.items()
    }
    held_out = {part: {prompt.text for prompt in getattr(prompt_sets(), part)} for part in ("dev", "test")}
    assert {part: set(said["prompts"]) for part, said in record.items()} == held_out
    base, pair = (side[0] for side in sides["test"])
    assert [best(side).guidance_scale for side in sides["dev"]] == [base.guidance_scale, pair.guidance_scale]

    pages = {name: (root / name).read_text(encoding="utf-8") for name in ("README.md", "docs/evidence.md")}
    pages["record"] = (root / "benchmarks" / "miniature" / "demo_base.md").read_text(encoding="utf-8")
    for line in scales_table(*sides["dev"])[1:]:
        assert as_row(line) in pages["record"]
    ours, theirs, gain = (as_row(line) for line in result_table(base, pair, ("base", "pair"))[1:])
    p_values = [said.split("p = ")[1].rstrip(")") for said in verdicts(base, pair)]
    for page in ("record", "docs/evidence.md"):
        for row in (ours, theirs):
            assert row.partition(" | ")[2] in pages[page]
        right, taste = gain.partition("difference | ")[2].rstrip(" |").split(" | ")
        assert f"{right} (p = {p_values[0]}) | {taste} (p = {p_values[1]}) |" in pages[page]
    for row in (ours, theirs):
        right, taste = row.rstrip(" |").split(" | ")[-2:]
        assert f"{right} %" in pages["README.md"]
        assert taste.split(" ")[0] in pages["README.md"]


def as_row(line):
    """A printed line as the pages have it: cells two spaces apart, without signs of percent."""
    cells = [cell.strip() for cell in re.split(" {2,}", line.strip().replace(" %", ""))]
    return f"| {' | '.join(cells)} |"
