"""The shipped workflows as files: what the front end assumes when it loads them, and what a person needs who opens one.

Nothing here knows ComfyUI's nodes; `tests/comfy/test_server.py` holds the same files against a running server.
"""

import itertools
import json
from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parents[1] / "workflows"
NAMES = sorted(path.stem for path in FOLDER.glob("*.json"))
EXPECTED = {
    "chats_img2img_inpaint",
    "chats_sd15_extracted_lora",
    "chats_sd15_ksampler",
    "chats_sd35_flow",
    "chats_sdxl_guider",
    "chats_sdxl_ksampler",
    "chats_sdxl_lora_pair",
    "chats_upscale",
    "chats_vs_cfg_sd15",
    "chats_vs_cfg_sdxl",
    "taste_1_draw_sd15",
    "taste_1_draw_sdxl",
    "taste_1_draw_z_image",
    "taste_2_train_and_compare_sd15",
    "taste_2_train_and_compare_sdxl",
    "taste_2_train_and_compare_z_image",
    "taste_3_distill_and_compare_sdxl",
    "taste_4_one_lora_core_nodes_sdxl",
}
# Those that draw candidates: of one model, before there is a pair.
DRAWING = sorted(name for name in EXPECTED if name.startswith("taste_1_draw_"))
TRAINING = sorted(name for name in EXPECTED if name.startswith("taste_2_train_and_compare_"))
DISTILLING, DISTILLED = "taste_3_distill_and_compare_sdxl", "taste_4_one_lora_core_nodes_sdxl"
SAMPLING = sorted(EXPECTED - {*DRAWING, DISTILLED})
NOTES = {"Note", "MarkdownNote"}
SEEDED = {"KSampler", "RandomNoise", "CHATSKSampler"}
WALKING = {"CHATSPromptLines"}  # each run takes the next of its lines
SEED_CONTROLS = {"fixed", "increment", "decrement", "randomize"}
# LoRAs that the user trains or extracts, and a flow pair: none of them is published, so they have no address.
OWN_LORAS = {
    "my-pair_preferred.safetensors",
    "my-pair_dispreferred.safetensors",
    "chats_sd15_dispreferred_lora_rank32.safetensors",
    "my-pair-sdxl_preferred.safetensors",
    "my-pair-sdxl_dispreferred.safetensors",
    "my-pair-sdxl-cfg1.safetensors",
}
OWN_FILES = OWN_LORAS | {"chats_sd35_preferred.safetensors", "chats_sd35_dispreferred.safetensors"}
TITLE_HEIGHT = 30  # of a node; its `pos` is below the title
ACTIVE, BYPASSED = 0, 4


@pytest.fixture(params=NAMES)
def workflow(request) -> dict:
    return read(request.param)


def read(name: str) -> dict:
    return json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))


def nodes_by_id(workflow: dict) -> dict[int, dict]:
    return {node["id"]: node for node in workflow["nodes"]}


def rectangle(node: dict) -> tuple[float, float, float, float]:
    """Left, top, right, bottom of a node with its title."""
    (x, y), (width, height) = node["pos"], node["size"]
    return x, y - TITLE_HEIGHT, x + width, y + height


def overlap(one: tuple, other: tuple) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


def inside(inner: tuple, outer: tuple) -> bool:
    return inner[0] >= outer[0] and inner[1] >= outer[1] and inner[2] <= outer[2] and inner[3] <= outer[3]


def group_rectangles(workflow: dict) -> list[tuple[float, float, float, float]]:
    return [
        (x, y, x + width, y + height) for x, y, width, height in (group["bounding"] for group in workflow["groups"])
    ]


def test_every_workflow_is_there():
    assert set(NAMES) == EXPECTED


def test_format(workflow):
    assert workflow["version"] == 0.4
    assert {"last_node_id", "last_link_id", "nodes", "links", "groups", "config", "extra"} <= set(workflow)
    for node in workflow["nodes"]:
        missing = {
            "id",
            "type",
            "pos",
            "size",
            "flags",
            "order",
            "mode",
            "inputs",
            "outputs",
            "properties",
            "widgets_values",
        } - set(node)
        assert not missing, f"{node['type']} lacks {missing}"
        assert node["mode"] in (ACTIVE, BYPASSED), f"{node['type']} is muted"


def test_ids_are_unique_and_counted(workflow):
    nodes = [node["id"] for node in workflow["nodes"]]
    links = [link[0] for link in workflow["links"]]
    assert len(set(nodes)) == len(nodes)
    assert len(set(links)) == len(links)
    # The next node that a user adds gets last_node_id + 1.
    assert workflow["last_node_id"] == max(nodes)
    assert workflow["last_link_id"] == max(links)


def test_links_agree_with_both_ends(workflow):
    nodes = nodes_by_id(workflow)
    for link, origin, origin_slot, target, target_slot, kind in workflow["links"]:
        output = nodes[origin]["outputs"][origin_slot]
        target_input = nodes[target]["inputs"][target_slot]
        assert output["type"] == kind == target_input["type"], (
            f"link {link}: {output['type']} → {target_input['type']}, stated {kind}"
        )
        assert link in output["links"], f"link {link} is unknown to its origin {nodes[origin]['type']}"
        assert target_input["link"] == link, f"link {link} is unknown to its target {nodes[target]['type']}"


def test_slots_name_no_other_links(workflow):
    links = {link[0]: link for link in workflow["links"]}
    for node in workflow["nodes"]:
        for slot, target_input in enumerate(node["inputs"]):
            assert target_input["link"] in links, f"{node['type']}: input `{target_input['name']}` is not connected"
            assert links[target_input["link"]][3:5] == [node["id"], slot]
        for slot, output in enumerate(node["outputs"]):
            assert all(links[link][1:3] == [node["id"], slot] for link in output["links"])


def test_order_runs_along_the_links(workflow):
    order = {node["id"]: node["order"] for node in workflow["nodes"]}
    assert sorted(order.values()) == list(range(len(order)))
    assert all(order[origin] < order[target] for _, origin, _, target, *_ in workflow["links"])


def test_seeds_are_fixed(workflow):
    seeded = [node for node in workflow["nodes"] if node["type"] in SEEDED]
    assert seeded
    for node in seeded:
        seed, control = node["widgets_values"][:2]
        assert isinstance(seed, int)
        assert control == "fixed", (
            f"{node['type']}: the seed is set to `{control}`, which gives another picture at each run"
        )
    others = [
        value for node in workflow["nodes"] if node["type"] not in SEEDED | WALKING for value in node["widgets_values"]
    ]
    assert not SEED_CONTROLS.intersection(filter(lambda value: isinstance(value, str), others)), (
        "a node with a seed is not in SEEDED"
    )


def test_every_model_file_names_its_source(workflow):
    for node in workflow["nodes"]:
        files = {value for value in node["widgets_values"] if isinstance(value, str) and value.endswith(".safetensors")}
        stated = {model["name"]: model for model in node["properties"].get("models", [])}
        assert set(stated) == files - OWN_FILES, (
            f"{node['type']}: properties.models has {set(stated)}, the widgets {files}"
        )
        for model in stated.values():
            assert set(model) == {"name", "url", "directory"}
            assert model["url"].startswith("https://huggingface.co/")
            assert "/resolve/" in model["url"], f"{model['url']} is a page, not a file"
            assert model["url"].endswith(".safetensors")


def test_preferred_and_dispreferred_come_from_their_own_source(workflow):
    """The authors call the preferred member `unet_win`; swapped, the pair would sample away from what people like."""
    models = [model for node in workflow["nodes"] for model in node["properties"].get("models", [])]
    for model in models:
        assert ("/unet_win/" in model["url"]) == model["name"].endswith("_preferred.safetensors")
        assert ("/unet_lose/" in model["url"]) == model["name"].endswith("_dispreferred.safetensors")


def test_the_pair_is_connected_the_right_way_round(workflow):
    nodes = nodes_by_id(workflow)
    for _, origin, origin_slot, target, target_slot, _ in workflow["links"]:
        name = nodes[target]["inputs"][target_slot]["name"]
        if name in ("preferred", "dispreferred"):
            assert nodes[origin]["outputs"][origin_slot]["name"] == name


def origin_of(workflow: dict, node: dict, name: str) -> dict:
    """The node that an input is connected to."""
    link = next(entry["link"] for entry in node["inputs"] if entry["name"] == name)
    return nodes_by_id(workflow)[next(entry[1] for entry in workflow["links"] if entry[0] == link)]


def output_of(workflow: dict, node: dict, name: str) -> str:
    """The name of the output that an input is connected to."""
    link = next(entry["link"] for entry in node["inputs"] if entry["name"] == name)
    slot = next(entry[2] for entry in workflow["links"] if entry[0] == link)
    return origin_of(workflow, node, name)["outputs"][slot]["name"]


@pytest.mark.parametrize("workflow", SAMPLING, indirect=True)
def test_the_null_prompt_is_the_one_the_pair_was_trained_with(workflow):
    """Zeros for an SDXL pair from the trainer; an encoded empty prompt for the authors' pairs, for the training node's
    and for the other families."""
    types = {node["type"] for node in workflow["nodes"]}
    checkpoints = {
        value
        for node in workflow["nodes"]
        if node["type"] == "CheckpointLoaderSimple"
        for value in node["widgets_values"]
    }
    from_the_trainer = "CHATSLoRAPairLoader" in types and "CHATSDistillPair" not in types
    zeros = from_the_trainer and "sd_xl_base_1.0.safetensors" in checkpoints
    takers = [node for node in workflow["nodes"] if node["type"] in ("CHATSProxyPrompt", "CHATSKSampler")]
    assert takers
    for taker in takers:
        null = origin_of(workflow, taker, "null")
        assert (null["type"], null["widgets_values"]) == (
            ("ConditioningZeroOut", []) if zeros else ("CLIPTextEncode", [""])
        )


def test_the_note_says_how_each_own_lora_is_made(workflow):
    (text,) = next(node["widgets_values"] for node in workflow["nodes"] if node["type"] in NOTES)
    for node in (node for node in workflow["nodes"] if node["type"] == "CHATSLoRAPairLoader"):
        *files, strength_preferred, strength_dispreferred = node["widgets_values"]
        assert strength_preferred == strength_dispreferred == 1
        assert set(files) <= OWN_LORAS | {"none"}
        assert all(f"`{name}`" in text for name in files)
        assert "`models/loras/`" in text
        assert "python -m chats_train " in text


def test_a_lora_on_a_preferred_model_starts_from_one():
    workflow = read("chats_sd15_extracted_lora")
    (loader,) = (node for node in workflow["nodes"] if node["type"] == "CHATSLoRAPairLoader")
    assert loader["widgets_values"][0] == "none"
    assert origin_of(workflow, loader, "model")["widgets_values"][0].endswith("_preferred.safetensors")


def test_both_passes_of_the_upscale_sample_with_the_pair():
    workflow = read("chats_upscale")
    samplers = [node for node in workflow["nodes"] if node["type"] == "KSampler"]
    assert len(samplers) == 2
    for sampler in samplers:
        assert origin_of(workflow, sampler, "model")["type"] == "CHATSApply"
        assert origin_of(workflow, sampler, "negative")["type"] == "CHATSProxyPrompt"


@pytest.mark.parametrize("workflow", DRAWING, indirect=True)
def test_each_run_draws_four_candidates_of_the_next_prompt(workflow):
    """The line's prompt is what is encoded and what the candidates are saved under; its index is the seed, so that a
    prompt that comes again is drawn from other noise."""
    nodes = {node["type"]: node for node in workflow["nodes"] if node["type"] != "CLIPTextEncode"}
    lines, sampler, save = nodes["CHATSPromptLines"], nodes["KSampler"], nodes["CHATSSaveCandidates"]
    text, index, control = lines["widgets_values"]
    assert len(set(filter(str.strip, text.split("\n")))) == len(text.split("\n")) >= 4
    assert (index, control) == (0, "increment")
    latent = origin_of(workflow, sampler, "latent_image")
    assert latent["widgets_values"][2] == 4  # pictures at once
    positive = origin_of(workflow, sampler, "positive")
    taken = [
        (origin_of(workflow, node, name)["type"], output_of(workflow, node, name))
        for node, name in ((positive, "text"), (save, "prompt"), (sampler, "seed"))
    ]
    assert taken == [("CHATSPromptLines", name) for name in ("prompt", "prompt", "index")]
    assert origin_of(workflow, sampler, "negative")["widgets_values"] == [""]


def only(workflow: dict, kind: str) -> dict:
    """The one node of a type."""
    (node,) = (node for node in workflow["nodes"] if node["type"] == kind)
    return node


@pytest.mark.parametrize("workflow", TRAINING, indirect=True)
def test_base_and_pair_differ_in_nothing_but_the_pair(workflow):
    """One prompt, null prompt, latent, seed, sampler and schedule; the pair is trained on the MODEL that is sampled
    beside it, with the null prompt that it is sampled with."""
    train, lines = only(workflow, "CHATSTrainLoRAPair"), only(workflow, "CHATSPromptLines")
    base, pair = only(workflow, "KSampler"), only(workflow, "CHATSKSampler")

    def origins(node: dict, *names: str) -> list[tuple[int, str]]:
        return [(origin_of(workflow, node, name)["id"], output_of(workflow, node, name)) for name in names]

    assert origins(train, "model") == origins(base, "model")
    assert origins(pair, "preferred", "dispreferred") == [(train["id"], "preferred"), (train["id"], "dispreferred")]
    assert origins(base, "positive", "latent_image", "seed") == origins(pair, "positive", "latent_image", "seed")
    assert origins(base, "negative") == origins(pair, "null") == origins(train, "null")
    assert origins(base, "seed") == [(lines["id"], "index")]
    assert origins(origin_of(workflow, base, "positive"), "text") == [(lines["id"], "prompt")]
    assert len({(steps, *rest) for _, _, steps, _, *rest in (base["widgets_values"], pair["widgets_values"][:7])}) == 1
    saved = [node["widgets_values"][0] for node in workflow["nodes"] if node["type"] == "SaveImage"]
    assert len(set(saved)) == 2


@pytest.mark.parametrize("name", TRAINING)
def test_what_was_drawn_and_rated_is_what_is_trained_on(name):
    """The data set, model files and size of the workflow that draws; none of its prompts is compared with."""
    training, drawing = read(name), read(name.replace("2_train_and_compare", "1_draw"))
    dataset, pair, *_ = only(training, "CHATSTrainLoRAPair")["widgets_values"]
    assert [dataset] == only(drawing, "CHATSSaveCandidates")["widgets_values"]
    assert dataset != pair
    lines, drawn = (
        set(only(each, "CHATSPromptLines")["widgets_values"][0].split("\n")) for each in (training, drawing)
    )
    assert len(lines) == 8
    assert not lines & drawn
    for kind in ("CheckpointLoaderSimple", "UNETLoader", "CLIPLoader", "VAELoader", "ModelSamplingAuraFlow"):
        ours, theirs = (
            [n["widgets_values"] for n in each["nodes"] if n["type"] == kind] for each in (training, drawing)
        )
        assert ours == theirs
    (size, drawn) = (
        node["widgets_values"][:2] for each in (training, drawing) for node in each["nodes"] if "Latent" in node["type"]
    )
    assert size == drawn
    assert only(training, "CHATSTrainLoRAPair")["widgets_values"][9] <= size[0]


def test_the_lora_is_compared_with_what_it_was_distilled_from_and_used_alone():
    """One prompt, latent, seed, sampler and schedule in three rows, each timed; the LoRA learns the pair as the second
    row samples it, on the data set and with the files that the training before it names."""
    workflow, alone = read(DISTILLING), read(DISTILLED)
    training = only(read("taste_2_train_and_compare_sdxl"), "CHATSTrainLoRAPair")["widgets_values"]
    distill, apply = only(workflow, "CHATSDistillPair"), only(workflow, "CHATSApply")
    proxy, loader = only(workflow, "CHATSProxyPrompt"), only(workflow, "CHATSLoRAPairLoader")
    dataset, name, cfg, *guidance = distill["widgets_values"]
    assert dataset == training[0]
    assert loader["widgets_values"][:2] == [
        f"{training[1]}_{side}.safetensors" for side in ("preferred", "dispreferred")
    ]
    assert origin_of(workflow, distill, "model") == apply
    assert origin_of(workflow, distill, "null") == origin_of(workflow, proxy, "null")
    assert guidance[:2] == proxy["widgets_values"]
    rows = [node for node in workflow["nodes"] if node["type"] == "KSampler"]
    timers = [origin_of(workflow, row, "model") for row in rows]
    assert {timer["type"] for timer in timers} == {"CHATSStopwatch"}
    models = [origin_of(workflow, timer, "model")["type"] for timer in timers]
    assert models == ["CheckpointLoaderSimple", "CHATSApply", "CHATSDistillPair"]
    assert [row["widgets_values"][3] for row in rows] == [cfg, cfg, 1]
    assert origin_of(workflow, rows[1], "negative") == proxy
    for what in ("positive", "latent_image"):
        assert len({origin_of(workflow, row, what)["id"] for row in rows}) == 1
    (sampler,) = (node for node in alone["nodes"] if node["type"] == "KSampler")
    assert len({(*values[:3], *values[4:]) for values in (row["widgets_values"] for row in [*rows, sampler])}) == 1
    assert sampler["widgets_values"][3] == 1
    assert origin_of(alone, sampler, "model")["widgets_values"] == [f"{name}.safetensors", 1]
    assert not any(node["type"].startswith("CHATS") for node in alone["nodes"])


def test_each_data_set_has_its_own_model():
    """Candidates of several models in one data set would compare the models."""
    names = [
        node["widgets_values"]
        for name in DRAWING
        for node in read(name)["nodes"]
        if node["type"] == "CHATSSaveCandidates"
    ]
    assert len({*map(tuple, names)}) == len(names) == len(DRAWING)


def test_one_note_says_what_to_change_first_and_names_every_file(workflow):
    notes = [node for node in workflow["nodes"] if node["type"] in NOTES]
    assert len(notes) == 1
    (text,) = notes[0]["widgets_values"]
    assert text.startswith("## Change first")
    models = [model for node in workflow["nodes"] for model in node["properties"].get("models", [])]
    for model in models:
        assert model["name"] in text
        assert model["url"] in text
        assert f"models/{model['directory']}/" in text


def test_no_two_nodes_overlap(workflow):
    for one, other in itertools.combinations(workflow["nodes"], 2):
        assert not overlap(rectangle(one), rectangle(other)), (
            f"{one['type']} {one['id']} and {other['type']} {other['id']} overlap"
        )


def test_every_node_is_in_one_group_and_groups_are_apart(workflow):
    groups = group_rectangles(workflow)
    assert not any(overlap(one, other) for one, other in itertools.combinations(groups, 2))
    for node in workflow["nodes"]:
        count = sum(inside(rectangle(node), group) for group in groups)
        assert count == (0 if node["type"] in NOTES else 1), f"{node['type']} {node['id']} is in {count} groups"
        touching = sum(overlap(rectangle(node), group) for group in groups)
        assert touching == count, f"{node['type']} {node['id']} sticks out of its group"


def test_links_run_from_left_to_right(workflow):
    nodes = nodes_by_id(workflow)
    for link, origin, _, target, *_ in workflow["links"]:
        assert nodes[origin]["pos"][0] <= nodes[target]["pos"][0], f"link {link} runs back from {nodes[origin]['type']}"
