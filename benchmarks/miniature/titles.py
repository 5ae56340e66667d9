"""What methods and conditions are called in tables."""

from __future__ import annotations

from collections.abc import Sequence

from .plan import ALPHA, CHATS, Condition, Method

OBJECTIVES = {
    "base": "base",
    "supervised_all": "supervised, all images",
    "supervised_chosen": "supervised, chosen images",
    "two_models_without_reference": "two models without reference",
    "diffusion_dpo": "Diffusion-DPO",
    "chats": "CHATS",
}
CONDITIONS: dict[Condition, str] = {
    "cfg": "CFG",
    "alpha0": "α = 0",
    "proxy": f"α = {ALPHA}, proxy",
    "exact": f"α = {ALPHA}, exact",
    "base_negative": "the base as the negative",
    "dispreferred": "the dispreferred model alone",
}


def method_title(method: Method) -> str:
    parts = [OBJECTIVES[method.objective]]
    if method.matched:
        parts.append("matched")
    if method.pairs not in (0, CHATS.pairs):
        parts.append(f"{method.pairs} pairs")
    if method.training_method == "lora":
        parts.append("LoRA")
    return ", ".join(parts)


def as_markdown(table: Sequence[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(row) + " |" for row in table]
    return "\n".join([lines[0], "|" + " --- |" * len(table[0]), *lines[1:]])
