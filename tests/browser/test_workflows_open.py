"""Every workflow as a person meets it: opened as a template, drawn, converted, queued, in classic rendering and in
Nodes 2.0."""

from __future__ import annotations

import itertools
import json

import pytest
import workflow_graph
from conftest import COMFYUI, ends_only, is_newest, pack_module
from page import SUCCESS
from rating_page import put_rated
from serving import ROOT
from test_taste_loop import DRAW, TRAIN

WORKFLOWS = sorted(path.stem for path in (ROOT / "workflows").glob("*.json"))
# Rendered edges are rounded to pixels.
TOLERANCE = 2


def renderings() -> list[str]:
    """How graphs are drawn here: both ways in the newest, in others the newer that they have."""
    version = (COMFYUI / "comfyui_version.py").read_text(encoding="utf-8").split('"')[1]
    if tuple(map(int, version.split("."))) < (0, 4):
        return ["classic"]
    return ["classic", "Nodes 2.0"] if is_newest() else ["Nodes 2.0"]


RENDERINGS = renderings()


# Of the session, as `opened` is of the module: so pytest opens all workflows in one rendering before the next.
@pytest.fixture(scope="session", params=RENDERINGS)
def front_end(request, shared_page):
    before = shared_page.nodes_2
    shared_page.render(nodes_2=request.param == "Nodes 2.0")
    yield shared_page
    shared_page.render(before)


@pytest.fixture(scope="module")
def object_info(server) -> dict:
    return server.json("/object_info")


@pytest.fixture(scope="module", params=WORKFLOWS)
def opened(request, front_end) -> tuple[str, dict]:
    """The name and the file of a workflow that is open now."""
    front_end.open_template(request.param)
    return request.param, json.loads((ROOT / "workflows" / f"{request.param}.json").read_text(encoding="utf-8"))


def test_opens_as_it_was_saved(opened, front_end, object_info):
    _, workflow = opened
    nodes = front_end.nodes()
    links = {link[0]: link for link in workflow["links"]}
    assert set(nodes) == {node["id"] for node in workflow["nodes"]}
    assert [node["type"] for node in nodes.values() if not node["registered"] or node["has_errors"]] == []
    for saved in workflow_graph.executed_nodes(workflow):
        node = nodes[saved["id"]]
        names = workflow_graph.widgets_of(object_info[saved["type"]])
        wanted = {
            name.split(".")[-1]: value
            for name, value in zip(names, saved["widgets_values"], strict=True)
            if name != "image.image_upload"
        }
        shown = dict(node["widgets"])
        assert {name: shown.get(name, "no such widget") for name in wanted} == wanted, saved["type"]
        connected = {slot["name"]: tuple(links[slot["link"]][1:3]) for slot in saved["inputs"]}
        assert {name: (origin, slot) for name, origin, slot in node["inputs"]} == connected, saved["type"]


def test_converts_to_what_the_file_says(opened, front_end, object_info):
    _, workflow = opened
    wanted = workflow_graph.to_api(workflow, object_info)
    converted = {
        number: {"class_type": node["class_type"], "inputs": node["inputs"]}
        for number, node in front_end.api_graph().items()
    }
    for node in converted.values():
        for extra in ("upload", "control_after_generate"):
            node["inputs"].pop(extra, None)
    assert converted == wanted


def test_nothing_overlaps_as_it_is_drawn(opened, front_end, screenshots):
    name, workflow = opened
    front_end.screenshot(screenshots / f"{name}-{'nodes2' if front_end.nodes_2 else 'classic'}.png")
    rectangles = front_end.rectangles()
    assert set(rectangles) == {node["id"] for node in workflow["nodes"]}
    types = {node["id"]: node["type"] for node in workflow["nodes"]}
    drawn = {f"{types[number]} {number}": bounds for number, bounds in rectangles.items()}
    groups = front_end.groups()
    assert len(groups) == len(workflow["groups"])
    for boxes in (drawn, groups):
        for (one, a), (other, b) in itertools.combinations(boxes.items(), 2):
            assert apart(a, b), f"{one} and {other} overlap: {a}, {b}"
    for name, bounds in drawn.items():
        around = [title for title, group in groups.items() if inside(bounds, group)]
        touched = [title for title, group in groups.items() if not apart(bounds, group)]
        assert around == touched, f"{name} sticks out of {touched}: {bounds}"


def apart(a: list[float], b: list[float]) -> bool:
    return any(
        a[axis] + a[axis + 2] <= b[axis] + TOLERANCE or b[axis] + b[axis + 2] <= a[axis] + TOLERANCE for axis in (0, 1)
    )


def inside(inner: list[float], outer: list[float]) -> bool:
    return all(
        outer[axis] - TOLERANCE <= inner[axis]
        and inner[axis] + inner[axis + 2] <= outer[axis] + outer[axis + 2] + TOLERANCE
        for axis in (0, 1)
    )


@ends_only
def test_runs(opened, front_end, server):
    """On models of random weights under the files' names; last, as it changes the graph."""
    name, workflow = opened
    if front_end.nodes_2 != (RENDERINGS[-1] == "Nodes 2.0"):
        pytest.skip("what is sent does not depend on how it is drawn; it runs in Nodes 2.0")
    if name in (DRAW, TRAIN):
        pytest.skip("test_taste_loop.py runs it")
    if name == TRAIN.replace("sd15", "sdxl"):
        pytest.skip("the graph and the stand-ins are those of SD1.5's")
    if name == "chats_sd35_flow":
        # T5 has its real size, and takes minutes; the model samples without it too.
        clips = {"clip_name1": "clip_l.safetensors", "clip_name2": "clip_g.safetensors", "type": "sd3"}
        front_end.replace_node("TripleCLIPLoader", "DualCLIPLoader", **clips)
    trainings = [node["widgets_values"] for node in workflow["nodes"] if node["type"] == "CHATSTrainLoRAPair"]
    distillations = [node["widgets_values"] for node in workflow["nodes"] if node["type"] == "CHATSDistillPair"]
    loras = server.base / "models" / "loras"
    for dataset, name, *_ in [*trainings, *distillations]:
        put_rated(server, dataset)
        (loras / f"{name}.safetensors").unlink(missing_ok=True)  # the stand-in of the workflow that uses it
        front_end.set_widgets(rank=2, accumulate=1, resolution=64)
    front_end.set_widgets(steps=2, width=64, height=64, tile_size=64, overlap=16)
    assert front_end.run() == SUCCESS
    for dataset, pair, *_ in trainings:
        file = loras / f"{pair}_preferred.safetensors"
        metadata = pack_module("chats.pair").read_metadata(file)
        loader = next(node for node in workflow["nodes"] if node["type"] in ("CheckpointLoaderSimple", "UNETLoader"))
        assert (metadata.dataset_name, metadata.dataset_pairs) == (dataset, 2)
        assert metadata.base_file == loader["widgets_values"][0]
    for _, lora, *_ in distillations:
        header = pack_module("chats.pair").read_header(loras / f"{lora}.safetensors")
        assert pack_module("chats.distilled").DistilledMetadata.from_header(header).step == 2
        assert front_end.page.get_by_text("2 steps in").count() == 3
