"""What a run keeps of the probe of its proxy prompt, from its end to each export of its pair."""

from __future__ import annotations

import json
import math
from pathlib import Path

from chats.files import write_text

from ..sampling.probe import ProbeResult

FILE = "proxy_probe.json"


def write_probe(output_dir: Path, step: int, result: ProbeResult) -> None:
    """Writes the means beside the pair."""
    said = {"step": step, "alpha": result.alpha, **result.means}
    write_text(output_dir / FILE, json.dumps(said) + "\n")


def read_probe(output_dir: Path, step: int) -> dict[str, float]:
    """The metadata's fields of the probe of a run that ended at ``step``; none for another step, and where there was no
    probe or the model did not react to its prompts."""
    path = output_dir / FILE
    found = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    if found.get("step") != step or not all(math.isfinite(found[name]) for name in ("cosine", "relative_error")):
        return {}
    return {f"proxy_{name}": round(found[name], 4) for name in ("cosine", "relative_error")}
