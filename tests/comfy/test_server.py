"""The pack in a running ComfyUI server: what it lists, what it serves, and whole runs of the shipped workflows to a
PNG.

The server loads mini models of random weights under the file names that the workflows ask for.
"""

from __future__ import annotations

import collections
import io
import json
import re
import time
from collections.abc import Iterator

import numpy as np
import pytest
import rating_requests
import workflow_graph
from conftest import newest_only
from PIL import Image
from serving import PACK, ROOT, Server, running_server

WORKFLOWS = {path.stem: path for path in sorted((ROOT / "workflows").glob("*.json"))}
NODES = {
    "CHATSCheckpointPairLoader",
    "CHATSDiffusionModelPairLoader",
    "CHATSLoRAPairLoader",
    "CHATSProxyPrompt",
    "CHATSApply",
    "CHATSGuider",
    "CHATSKSampler",
    "CHATSPromptLines",
    "CHATSSaveCandidates",
    "CHATSTrainLoRAPair",
    "CHATSDistillPair",
    "CHATSStopwatch",
}
PAIR_LOADERS = {"CHATSDiffusionModelPairLoader", "CHATSLoRAPairLoader"}
RARE_INPUTS = {"form", "start_percent", "end_percent", "weight_dtype"}
RARE_INPUTS |= {"layers", "accumulate", "beta", "null_prompt_prob"}


@pytest.fixture(scope="module")
def server(tmp_path_factory) -> Iterator[Server]:
    with running_server(tmp_path_factory.mktemp("server")) as running:
        yield running


@pytest.fixture(scope="module")
def object_info(server) -> dict:
    return server.json("/object_info")


@pytest.fixture(params=WORKFLOWS)
def workflow(request) -> dict:
    return json.loads(WORKFLOWS[request.param].read_text(encoding="utf-8"))


def shipped(name: str, object_info: dict, steps: int = 2) -> dict[str, dict]:
    """A shipped workflow as an API graph, with few steps."""
    workflow = json.loads(WORKFLOWS[name].read_text(encoding="utf-8"))
    return workflow_graph.set_inputs(workflow_graph.to_api(workflow, object_info), steps=steps)


def assert_is_a_picture(picture: np.ndarray, width: int, height: int) -> None:
    """Neither black, which NaN latents decode to, nor of one colour."""
    assert picture.shape == (height, width, 3)
    assert picture.mean() > 5
    assert picture.reshape(-1, 3).std(axis=0).min() > 5


def test_object_info_describes_every_node(object_info):
    ours = {name: node for name, node in object_info.items() if name.startswith("CHATS")}
    assert set(ours) >= NODES
    for name, node in ours.items():
        assert node["description"], f"{name} has no description"
        assert node["python_module"] == f"custom_nodes.{PACK}"
        assert len(node["output_tooltips"]) == len(node["output"]), f"{name} lacks a tooltip of an output"
        assert all(node["output_tooltips"])
        for entry, (_, options) in workflow_graph.inputs_of(node).items():
            assert options.get("tooltip"), f"{name}: `{entry}` has no tooltip"
            assert options.get("advanced", False) == (entry in RARE_INPUTS), (
                f"{name}: `{entry}` is advanced: {options.get('advanced')}"
            )


def test_file_lists_offer_only_safetensors(object_info):
    for loader in ("CHATSCheckpointPairLoader", "CHATSDiffusionModelPairLoader"):
        inputs = workflow_graph.inputs_of(object_info[loader])
        for member in ("preferred", "dispreferred"):
            files = inputs[member][1]["options"]
            assert files, f"{loader}: `{member}` offers no file"
            assert all(name.endswith(".safetensors") for name in files)


def test_templates_are_listed_and_served(server):
    listed = server.json("/api/workflow_templates")[PACK]
    assert sorted(listed) == sorted(WORKFLOWS)
    for name in listed:
        assert server.get(f"/api/workflow_templates/{PACK}/{name}.json") == WORKFLOWS[name].read_bytes()
        with Image.open(io.BytesIO(server.get(f"/api/workflow_templates/{PACK}/{name}.jpg"))) as thumbnail:
            assert (thumbnail.format, thumbnail.width) == ("JPEG", 640)


def test_workflow_fits_the_schema(workflow, object_info):
    unknown = {node["type"] for node in workflow_graph.executed_nodes(workflow)} - set(object_info)
    assert not unknown
    assert list(workflow_graph.widget_errors(workflow, object_info)) == []
    assert list(workflow_graph.link_errors(workflow, object_info)) == []


def test_shifted_widgets_and_slots_are_noticed(object_info):
    """The two mistakes that front ends load without a word."""
    workflow = json.loads(WORKFLOWS["chats_sd15_ksampler"].read_text(encoding="utf-8"))
    sampler = next(node for node in workflow["nodes"] if node["type"] == "KSampler")
    del sampler["widgets_values"][1]
    sampler["inputs"][0], sampler["inputs"][1] = sampler["inputs"][1], sampler["inputs"][0]
    assert len(list(workflow_graph.widget_errors(workflow, object_info))) == 1
    assert len(list(workflow_graph.link_errors(workflow, object_info))) == 1
    sampler["widgets_values"] = [1, "fixed", 30, 6, "no such sampler", "normal", 2]
    errors = " ".join(workflow_graph.widget_errors(workflow, object_info))
    assert "`sampler_name`" in errors
    assert "`denoise`" in errors


def test_the_server_objects_to_nothing_but_missing_files(workflow, server, object_info):
    """ComfyUI's own validation of each workflow; its files are renamed to ones that are not there, so nothing runs."""
    graph = workflow_graph.to_api(workflow, object_info)
    renamed = collections.defaultdict(set)
    for node_id, node in graph.items():
        for name, value in node["inputs"].items():
            if isinstance(value, str) and value.endswith(workflow_graph.FILE_SUFFIXES):
                node["inputs"][name] = f"nowhere_{value}"
                renamed[node_id].add(name)
    errors = server.queue(graph)["node_errors"]
    # Not every file is missed: ComfyUI 0.3.64 does not look into the combos of nodes written in its third API,
    # TripleCLIPLoader here.
    assert {node_id for node_id in renamed if graph[node_id]["class_type"] in PAIR_LOADERS} <= set(errors)
    assert set(errors) <= set(renamed)
    for node_id, found in errors.items():
        for error in found["errors"]:
            name = error["extra_info"]["input_name"]
            # The LoRA pair's two files are checked together, also when one of them is `none`.
            assert name in renamed[node_id] or graph[node_id]["inputs"][name] == "none", error
            assert "nowhere_" in error["details"]


@pytest.fixture(scope="module")
def sd15_picture(server, object_info) -> np.ndarray:
    (picture,) = server.run(small(shipped("chats_sd15_ksampler", object_info)))
    return picture


def small(graph: dict[str, dict]) -> dict[str, dict]:
    return workflow_graph.set_inputs(graph, width=128, height=96)


def checkpoint_pair_graph(preferred: str, dispreferred: str) -> dict[str, dict]:
    """The shortest way to a picture: a pair of checkpoints and the one-box sampler."""
    sampling = {
        "seed": 20250218,
        "steps": 2,
        "cfg": 6.0,
        "sampler_name": "euler",
        "scheduler": "normal",
        "denoise": 1.0,
    }
    sampling |= {"alpha": 0.5, "form": "proxy", "start_percent": 0.0, "end_percent": 1.0}
    connected = {
        "preferred": ["1", 0],
        "dispreferred": ["1", 1],
        "positive": ["2", 0],
        "null": ["3", 0],
        "latent_image": ["4", 0],
    }
    return {
        "1": {
            "class_type": "CHATSCheckpointPairLoader",
            "inputs": {"preferred": preferred, "dispreferred": dispreferred},
        },
        "2": {"class_type": "CLIPTextEncode", "inputs": {"text": "a red fox", "clip": ["1", 2]}},
        "3": {"class_type": "CLIPTextEncode", "inputs": {"text": "", "clip": ["1", 2]}},
        "4": {"class_type": "EmptyLatentImage", "inputs": {"width": 128, "height": 96, "batch_size": 1}},
        "5": {"class_type": "CHATSKSampler", "inputs": {**connected, **sampling}},
        "6": {"class_type": "VAEDecode", "inputs": {"samples": ["5", 0], "vae": ["1", 3]}},
        "7": {"class_type": "SaveImage", "inputs": {"images": ["6", 0], "filename_prefix": "pair"}},
    }


def test_sd15_workflow_gives_a_picture(sd15_picture):
    assert_is_a_picture(sd15_picture, width=128, height=96)


# In older versions, tests/browser runs every workflow to its end.
@newest_only
def test_sd15_workflow_uses_both_models_and_alpha(server, object_info, sd15_picture):
    """Without the dispreferred model, and with another alpha, the picture is another."""
    graph = small(shipped("chats_sd15_ksampler", object_info))
    (other_alpha,) = server.run(workflow_graph.set_inputs(graph, alpha=1.5))
    workflow_graph.set_inputs(graph, alpha=0.5)
    by_type = {node["class_type"]: node["inputs"] for node in graph.values()}
    by_type["KSampler"]["model"] = by_type["CHATSApply"]["preferred"]
    (preferred_only,) = server.run(graph)
    assert mean_difference(other_alpha, sd15_picture) > 0.5
    assert mean_difference(preferred_only, sd15_picture) > 0.5


@newest_only
def test_checkpoint_pair_and_one_box_sampler_give_the_same_picture(server, object_info, sd15_picture):
    """The same weights through other loaders and another sampler node: the picture of the first workflow."""
    graph = checkpoint_pair_graph("v1-5-pruned-emaonly-fp16.safetensors", "dispreferred.safetensors")
    workflow = shipped("chats_sd15_ksampler", object_info)
    graph["2"]["inputs"]["text"] = max((node["inputs"].get("text", "") for node in workflow.values()), key=len)
    (picture,) = server.run(graph)
    assert np.abs(picture.astype(int) - sd15_picture.astype(int)).max() <= 1


@newest_only
def test_img2img_workflow_changes_the_picture_or_its_masked_part(server, object_info):
    workflow = json.loads(WORKFLOWS["chats_img2img_inpaint"].read_text(encoding="utf-8"))
    (whole,) = server.run(workflow_graph.set_inputs(workflow_graph.to_api(workflow, object_info), steps=3))
    assert_is_a_picture(whole, width=128, height=96)
    for node in workflow["nodes"]:
        node["mode"] = 0  # what Ctrl+B does to the bypassed mask node
    graph = workflow_graph.set_inputs(workflow_graph.to_api(workflow, object_info), steps=3)
    (inpainted,) = server.run(graph)
    (untouched,) = server.run(without_sampling(graph))
    kept, painted = np.s_[:, :32], np.s_[:, 96:]
    assert mean_difference(inpainted[kept], untouched[kept]) < 0.2 * mean_difference(
        inpainted[painted], untouched[painted]
    )
    assert mean_difference(whole[kept], untouched[kept]) > 0.5 * mean_difference(whole[painted], untouched[painted])


@newest_only
@pytest.mark.parametrize(
    ("name", "sides"),
    [("chats_sdxl_lora_pair", ("preferred", "dispreferred")), ("chats_sd15_extracted_lora", ("dispreferred",))],
)
def test_lora_workflow_gives_a_picture_that_each_lora_changes(name, sides, server, object_info):
    graph = small(shipped(name, object_info))
    (picture,) = server.run(graph)
    assert_is_a_picture(picture, width=128, height=96)
    for side in sides:
        (without,) = server.run(workflow_graph.set_inputs(graph, **{f"strength_{side}": 0.0}))
        workflow_graph.set_inputs(graph, **{f"strength_{side}": 1.0})
        assert mean_difference(without, picture) > 0.5, f"the {side} LoRA has no effect"


@newest_only
def test_upscale_workflow_samples_with_the_pair_in_both_passes(server, object_info):
    """Each pass's picture is another when its sampler has the preferred model alone."""
    graph = shipped("chats_upscale", object_info)
    workflow_graph.set_inputs(graph, width=64, height=64, tile_size=64, overlap=16)  # several tiles in the second pass
    (loader,) = ids_of(graph, "CHATSLoRAPairLoader")
    (save,) = ids_of(graph, "SaveImage")
    for decoder, width, height in (("VAEDecode", 64, 64), ("VAEDecodeTiled", 96, 96)):
        (decode,) = ids_of(graph, decoder)
        sampler = graph[graph[decode]["inputs"]["samples"][0]]
        assert sampler["class_type"] == "KSampler"
        graph[save]["inputs"]["images"] = [decode, 0]
        (picture,) = server.run(graph)
        assert_is_a_picture(picture, width, height)
        joined, sampler["inputs"]["model"] = sampler["inputs"]["model"], [loader, 0]
        (preferred_only,) = server.run(graph)
        sampler["inputs"]["model"] = joined
        assert mean_difference(preferred_only, picture) > 0.5


def ids_of(graph: dict[str, dict], class_type: str) -> list[str]:
    return [node_id for node_id, node in graph.items() if node["class_type"] == class_type]


def without_sampling(graph: dict[str, dict]) -> dict[str, dict]:
    """The graph with its encoded picture decoded as it is."""
    (encode,) = [node_id for node_id, node in graph.items() if node["class_type"] == "VAEEncode"]
    (decode,) = [node for node in graph.values() if node["class_type"] == "VAEDecode"]
    decode["inputs"]["samples"] = [encode, 0]
    return graph


def mean_difference(one: np.ndarray, other: np.ndarray) -> float:
    """Mean distance of two pictures in steps of 0 to 255."""
    return float(np.abs(one.astype(float) - other.astype(float)).mean())


@pytest.mark.parametrize(
    ("preferred", "dispreferred", "way_out"),
    [
        ("chats_sd15_preferred.safetensors", "chats_sd15_preferred.safetensors", "choose the two members of a pair"),
        ("chats_sd15_preferred.safetensors", "truncated.safetensors", "download or export it again"),
        ("pickled.ckpt", "chats_sd15_dispreferred.safetensors", "convert it to .safetensors first"),
    ],
    ids=["same file twice", "truncated", "pickle"],
)
def test_a_pair_that_cannot_be_used_is_refused_when_queued(server, object_info, preferred, dispreferred, way_out):
    graph = shipped("chats_sd15_ksampler", object_info)
    (loader,) = [node_id for node_id, node in graph.items() if node["class_type"] == "CHATSDiffusionModelPairLoader"]
    graph[loader]["inputs"].update(preferred=preferred, dispreferred=dispreferred)
    errors = server.queue(graph)["node_errors"]
    assert set(errors) == {loader}
    for error in errors[loader]["errors"]:
        assert way_out in error["details"]
        assert preferred in error["details"] or dispreferred in error["details"]
        assert "\n" not in error["details"]
        assert "Traceback" not in error["details"]


@pytest.mark.parametrize(("language", "page"), [("en", "{}.md"), ("zh", "{}/zh.md")])
def test_help_is_served_and_names_every_input(server, object_info, language, page):
    """The front end asks for `<node>/<language>.md`, then for `<node>.md`; it takes a picture's path from `docs/` on in
    both."""
    docs = f"/extensions/{PACK}/docs/"
    for node in sorted(NODES):
        text = server.get(docs + page.format(node)).decode()
        rows = [re.match(r"\|[^|`]*`(\w+)` \|", line) for line in text.splitlines()]
        assert [row[1] for row in rows if row] == list(workflow_graph.inputs_of(object_info[node])), (
            f"{node}: the table of inputs"
        )
        pictures = re.findall(r"!\[[^\]]+\]\(([^)]+)\)", text)
        assert pictures, f"{node} has no picture"
        for picture in pictures:
            with Image.open(io.BytesIO(server.get(docs + picture))) as image:
                assert min(image.size) > 200
    assert server.json("/i18n")[language]["nodeDefs"].keys() >= NODES


def test_candidates_are_drawn_and_rated(server):
    """The way of the dialog: six pictures of three prompts, three pairs, a step back, and what the trainer reads."""
    pictures = {index: server.run(rating_requests.graph(index))[0] for index in range(6)}
    client, tab = rating_requests.Client(server.port), rating_requests.TAB
    (listed,) = client.get("/api/chats/datasets").content["datasets"]
    counts = {"name": "my taste", "candidates": 6, "prompts": 3, "pairs": 0, "rated": 0, "waiting": 3}
    assert listed == counts
    place, avoid, votes = "/api/chats/my%20taste", [], {}
    for number in range(3):
        given = client.get(f"{place}/pair?tab={tab}&avoid={','.join(avoid)}").content
        pair = given["pair"]
        shown = [server.picture(f"{pair[side]}.png", "chats/my taste/images", "output") for side in ("left", "right")]
        prompts = [
            rating_requests.PROMPTS[index % 3]
            for picture in shown
            for index, drawn in pictures.items()
            if np.array_equal(picture, drawn)
        ]
        assert prompts == [pair["prompt"]] * 2  # both are of the prompt that stands over them
        avoid.append(f"{pair['left']}-{pair['right']}")
        vote = {"rating": f"{number:016x}", **pair, "choice": ("left", "right", "tie")[number], "seconds": 1.5}
        del vote["prompt"]
        for _ in range(2):  # the second is one that is sent again
            answer = client.post(f"{place}/rating", vote).content
            assert answer["stands"]
            assert answer["progress"]["rated"] == number + 1
        votes[vote["rating"]] = vote
    last = client.get(f"{place}/pair?tab={tab}").content
    assert (last["pair"], last["last"], last["notes"]) == (None, f"{2:016x}", [])
    assert last["progress"] == {"rated": 3, "waiting": 0, "pairs": 2, "agreement": [0, 0]}
    for _ in range(2):
        undone = client.post(f"{place}/rating", {"undo": last["last"]}).content
        assert undone["pair"]["left"] == votes[last["last"]]["left"]
        assert undone["progress"]["waiting"] == 1
    assert client.post(f"{place}/guideline", {"guideline": "hands"}).content == {"guideline": "hands"}
    assert client.get(f"{place}/pair?tab={tab}").content["guideline"] == "hands"
    wanted = {
        (vote[vote["choice"]], vote["right" if vote["choice"] == "left" else "left"])
        for vote in votes.values()
        if vote["choice"] != "tie"
    }
    metadata = server.base / "output" / "chats" / "my taste" / "metadata.jsonl"
    deadline = time.monotonic() + 20
    while not metadata.exists() or len(metadata.read_text().splitlines()) < 2:
        assert time.monotonic() < deadline, "nothing was derived"
        time.sleep(0.1)
    derived = [json.loads(line) for line in metadata.read_text(encoding="utf-8").splitlines()]
    assert {
        tuple(line[f"{side}_file_name"].removeprefix("images/").removesuffix(".png") for side in ("chosen", "rejected"))
        for line in derived
    } == wanted


@pytest.mark.parametrize(
    ("status", "headers"),
    [
        (403, {"origin": "https://evil.example", "host": "192.168.1.5:8188"}),
        (403, {"origin": "null", "host": "192.168.1.5:8188"}),
        (403, {"sec_fetch_site": "cross-site", "host": "192.168.1.5:8188"}),
        (415, {"content_type": "text/plain"}),
        (200, {"origin": "http://192.168.1.5:8188", "host": "192.168.1.5:8188"}),
    ],
    ids=str,
)
def test_only_the_server_s_own_pages_are_answered(server, status, headers):
    """In every ComfyUI; `test_rating_attacks` has the rest."""
    client = rating_requests.Client(server.port)
    server.run(rating_requests.graph(0))
    answer = client.post("/chats/my%20taste/guideline", {"guideline": "faces"}, **headers)
    assert answer.status == status
    answer.assert_no_traceback()
