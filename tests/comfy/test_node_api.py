"""The nodes against the committed `node_api.json`: saved workflows and API graphs hold ids, inputs and outputs by name
and by place."""

import copy
import json

import describe_nodes
import pytest

HOW = "to change it deliberately, run tests/comfy/describe_nodes.py with ComfyUI's Python and commit node_api.json"
INCOMPATIBLE = f"INCOMPATIBLE with saved workflows; undo it, or note it in the CHANGELOG as a breaking change: {HOW}"
COMPATIBLE = f"not in node_api.json yet, but compatible with saved workflows: {HOW}"


def incompatible_changes(recorded: dict[str, dict], actual: dict[str, dict]) -> list[str]:
    """What breaks graphs made with the recorded nodes: anything but additions at the end, another default, a wider
    range."""
    changes = [f"{node_id} is missing" for node_id in recorded if node_id not in actual]
    for node_id in recorded.keys() & actual.keys():
        for kind in ("inputs", "outputs"):
            before, now = recorded[node_id][kind], actual[node_id][kind]
            names = [[entry["name"] for entry in entries] for entries in (before, now)]
            if names[1][: len(before)] != names[0]:
                changes.append(
                    f"{node_id}: the {kind} begin with {names[1][: len(before)]} and no longer with {names[0]}"
                )
                continue
            changes += [
                f"{node_id}: {kind} `{one['name']}` was {one} and is {other}"
                for one, other in zip(before, now, strict=False)
                if not fits(one, other)
            ]
        for entry in actual[node_id]["inputs"][len(recorded[node_id]["inputs"]) :]:
            if not entry.get("optional"):
                changes.append(
                    f"{node_id}: the new input `{entry['name']}` is required, and API graphs made before do not have it"
                )
    return changes


def fits(before: dict, now: dict) -> bool:
    """Whether every value that an input took is taken still, and an output gives the same."""
    fixed = ("type", "control_after_generate")
    return (
        all(before.get(key) == now.get(key) for key in fixed)
        and now.get("optional", False) >= before.get("optional", False)
        and now.get("options", [])[: len(before.get("options", []))] == before.get("options", [])
        and now.get("min", 0) <= before.get("min", 0)
        and now.get("max", 0) >= before.get("max", 0)
    )


@pytest.fixture(scope="module")
def recorded() -> dict[str, dict]:
    return json.loads(describe_nodes.NODE_API.read_text(encoding="utf-8"))


def test_the_nodes_are_the_recorded_ones(pack, recorded):
    actual = describe_nodes.node_api(describe_nodes.node_infos(pack))
    changes = incompatible_changes(recorded, actual)
    assert not changes, f"{'; '.join(changes)}. {INCOMPATIBLE}"
    differing = [node_id for node_id in actual if actual[node_id] != recorded.get(node_id)]
    assert not differing, f"{differing}: {COMPATIBLE}"


def move_first_to_the_end(entries: list[dict]) -> None:
    entries.append(entries.pop(0))


@pytest.mark.parametrize(
    "change",
    [
        lambda api: api.pop("CHATSApply"),
        lambda api: api["CHATSKSampler"]["inputs"].pop(),
        lambda api: move_first_to_the_end(api["CHATSKSampler"]["inputs"]),
        lambda api: api["CHATSKSampler"]["inputs"][6].update(type="FLOAT"),
        lambda api: api["CHATSKSampler"]["inputs"][5].pop("control_after_generate"),
        lambda api: api["CHATSKSampler"]["inputs"][11].update(min=0.0),
        lambda api: api["CHATSProxyPrompt"]["inputs"][3].update(options=["exact", "proxy"]),
        lambda api: api["CHATSGuider"]["inputs"].append({"name": "new", "type": "FLOAT", "default": 1.0}),
        lambda api: api["CHATSCheckpointPairLoader"]["outputs"].pop(),
        lambda api: api["CHATSApply"]["outputs"][0].update(type="GUIDER"),
        lambda api: api["CHATSApply"]["outputs"][0].update(name="model"),
    ],
    ids=[
        "id",
        "removed",
        "reordered",
        "retyped",
        "widget",
        "range",
        "options",
        "required",
        "output gone",
        "output type",
        "output name",
    ],
)
def test_a_break_is_told_from_an_addition(recorded, change):
    changed = copy.deepcopy(recorded)
    change(changed)
    assert len(incompatible_changes(recorded, changed)) == 1


def test_additions_at_the_end_are_compatible(recorded):
    changed = copy.deepcopy(recorded)
    changed["CHATSNew"] = changed["CHATSApply"]
    changed["CHATSGuider"]["inputs"].append({"name": "new", "type": "FLOAT", "default": 1.0, "optional": True})
    changed["CHATSGuider"]["outputs"].append({"name": "new", "type": "SIGMAS"})
    changed["CHATSProxyPrompt"]["inputs"][3]["options"].append("another")
    changed["CHATSProxyPrompt"]["inputs"][2].update(default=0.7, max=3.0)
    assert incompatible_changes(recorded, changed) == []
