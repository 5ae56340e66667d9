"""The page of a results.jsonl: what was measured, and what was refused or failed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

NAMES = {"sdxl": "SDXL", "z_image": "Z-Image", "z_image_short": "Z-Image of 2 layers"}
HEAD = "| model | parameters | step | steps a second | first step | peak, allocated (reserved) | base as loaded | RAM |"
PLAIN = {
    "seconds": "s in all",
    "check_seconds": "s, check of the gradient",
    "forward_seconds": "s, a forward pass",
    "forward_and_backward_seconds": "s, with its backward pass",
    "with_care_everywhere": "s, that where each block is taken for one that changes tensors in place",
}


def page(results: Path) -> str:
    rows = [json.loads(line) for line in results.read_text("utf-8").splitlines() if line.startswith("{")]
    machine = next((row for row in rows if row.get("part") == "make"), {})
    kinds = list(dict.fromkeys(row["kind"] for row in rows))
    lines = ["# The training node on models of real size", "", _machine(machine), "", HEAD, _rule(HEAD)]
    for kind in kinds:
        lines += _speed(kind, _of(rows, kind))
    for kind in kinds:
        lines += ["", f"## {NAMES.get(kind, kind)}", "", *_told(_of(rows, kind))]
    return "\n".join(lines)


def _machine(row: dict[str, Any]) -> str:
    return (
        f"`python -m benchmarks.node_training`: {row.get('card')} with {row.get('card_gib')} GiB, ComfyUI "
        f"{row.get('comfyui')}, torch {row.get('torch')}, dynamic VRAM {'on' if row.get('dynamic_vram') else 'off'} "
        f"(comfy-aimdo {row.get('comfy-aimdo')}, comfy-kitchen {row.get('comfy-kitchen')}). Random weights in bf16, "
        "pairs of pictures of 1024 × 1024, rank 16, attention, one pair a step."
    )


def _speed(kind: str, rows: list[dict[str, Any]]) -> list[str]:
    made = next((row for row in rows if row.get("part") == "make"), {})
    lines = []
    for row in rows:
        if row.get("part") not in ("whole", "little memory") or "step_seconds" not in row:
            continue
        free = f", {row['free_gib']:g} GiB free" if "free_gib" in row else ""
        loaded = f"{row.get('weights_on_card_gib')} of {row.get('weights_gib')} GiB"
        lines.append(
            f"| {NAMES.get(kind, kind)}{free} | {made.get('parameters', 0) / 1e9:.2f} B | {row['step_seconds']:.3f} s "
            f"| {row['steps_a_second']:.2f} | {row['first_step_seconds']:.2f} s | {row.get('peak_allocated_gib')} "
            f"({row.get('peak_reserved_gib')}) GiB | {loaded} | {row['peak_ram_gib']} GiB |"
        )
    return lines


def _told(rows: list[dict[str, Any]]) -> list[str]:
    lines = []
    for row in rows:
        part, free = row.get("part") or ", ".join(row["parts"]), row.get("free_gib")
        where = f"{part}, {free:g} GiB free" if free else part
        for kind in ("failed", "refused", "left_out"):
            if kind in row:
                lines.append(f"- **{where}**, {kind.replace('_', ' ')}: {row[kind]}")
        told = [f"{row[key]} {words}" for key, words in PLAIN.items() if key in row]
        if "step_seconds" in row:
            told.append(f"{row['step_seconds']} s a step over {row['steps'] - 1} steps")
        if "check" in row:
            told.append(f"finite differences {_check(row['check'])}")
        if "difference" in row:
            told.append(_difference(row["difference"]))
        if "first_pass_as_second" in row or part == "base afterwards":
            told += [f"{key.replace('_', ' ')}: {'yes' if row[key] else 'no'}" for key in _flags(row)]
        if part == "in use":
            told.append(
                f"stock CFG {row['cfg_step_seconds']} s a step, the pair {row['pair_step_seconds']} s: {row['ratio']} ×"
            )
        if part == "formula":
            told.append(f"the pair is {row['relative_error']:.1e} from it, the base {row['base_is_apart_by']:.1e}")
        if told:
            lines.append(f"- **{where}**: {'; '.join(told)}.")
    return lines


def _check(found: Any) -> str:
    if isinstance(found, str):
        return f"refuse it ({found})"
    return "are " + ", ".join(f"{ratio:.3f}" for ratio in found) + " of the gradient"


def _difference(found: dict[str, Any]) -> str:
    if not found["differ"]:
        return f"all {found['tensors']} tensors of the state equal, bitwise"
    most = f"{found['most_of_largest']:.1e}"
    return (
        f"{found['differ']} of {found['tensors']} tensors of the state differ, weights by at most {most} of the largest"
    )


def _flags(row: dict[str, Any]) -> list[str]:
    return [key for key, value in row.items() if isinstance(value, bool)]


def _of(rows: list[dict[str, Any]], kind: str) -> list[dict[str, Any]]:
    return [row for row in rows if row["kind"] == kind]


def _rule(head: str) -> str:
    return "|" + " --- |" * (head.count("|") - 1)
