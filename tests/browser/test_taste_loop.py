"""The loop as a person goes through it, on a mini checkpoint: candidates drawn and rated by keys, a pair trained with
one Cancel in the middle, compared with the base, and loaded from its files."""

from __future__ import annotations

import json

import numpy as np
import pytest
from conftest import newest_only, pack_module
from draw_thumbnails import SIDE
from page import CARDS, SUCCESS
from PIL import Image
from rating_page import Rating
from running import in_the_trainers_python

DRAW, TRAIN = "taste_1_draw_sd15", "taste_2_train_and_compare_sd15"
PROMPTS = ("a red house", "two cats on a wall")
# The workflow draws four candidates of each, any two of which make a pair.
CANDIDATES, PAIRS = 4 * len(PROMPTS), 6 * len(PROMPTS)
PICTURES_PIXELS = 64
# So many that Cancel comes before the last; and how many are left for the run that goes on.
MANY_STEPS, FURTHER_STEPS = 500, 2
THUMBNAILS = f"""side => Array.from(document.querySelectorAll('{CARDS} img')).filter(
    image => image.naturalWidth === side).length >= 4"""
# What the pack's nodes say, in turn.
LISTEN = """() => {
    window.said = [];
    app.api.addEventListener('progress_text', ({detail}) => window.said.push(detail.text.split('\\n')[0]));
}"""
ADD_LOADER = """() => {
    const loader = LiteGraph.createNode('CHATSLoRAPairLoader');
    app.graph.add(loader);
    app.graph.nodes.find(node => node.type === 'CheckpointLoaderSimple').connect(0, loader, 0);
}"""
CHOOSE = """names => {
    const find = type => app.graph.nodes.find(node => node.type === type);
    const loader = find('CHATSLoRAPairLoader'), sampler = find('CHATSKSampler');
    for (const [index, member] of ['preferred', 'dispreferred'].entries()) {
        loader.widgets.find(widget => widget.name === `${member}_lora`).value = names[index];
        loader.connect(index, sampler, member);
    }
}"""
LISTED = """names => {
    const loader = app.graph.nodes.find(node => node.type === 'CHATSLoRAPairLoader');
    return ['preferred_lora', 'dispreferred_lora'].every(name => {
        const {values} = loader.widgets.find(widget => widget.name === name).options;
        const listed = typeof values === 'function' ? values() : values;
        return names.every(name => listed.includes(name));
    });
}"""


@pytest.fixture(scope="module")
def rated(front_end, server, screenshots) -> Rating:
    """The data set, drawn with the template from the dialog, all of its pairs rated by keys, always by one rule."""
    front_end.open_templates()
    # The front end's stand-in for a missing picture has another width.
    front_end.page.wait_for_function(THUMBNAILS, arg=SIDE)
    front_end.screenshot(screenshots / "templates.png")
    front_end.click_template(DRAW)
    front_end.set_widgets(width=PICTURES_PIXELS, height=PICTURES_PIXELS, steps=1)
    front_end.set_widgets("CHATSPromptLines", text="\n".join(PROMPTS))
    assert front_end.run(len(PROMPTS)) == SUCCESS
    front_end.page.locator("body").press("t")
    rating = Rating(front_end.page, server, str(front_end.inputs("CHATSSaveCandidates")["dataset"]))
    rating.dialog.locator(".stage").focus()
    while rating.wait_for_a_pair():
        left, right = rating.ids()
        rating.press("ArrowLeft" if left < right else "ArrowRight")
    rating.screenshot(screenshots, "all")
    rating.wait_until_sent()
    rating.close()
    return rating


def test_candidates_are_drawn_and_rated(rated):
    lines = (rated.folder / "candidates.jsonl").read_text(encoding="utf-8").splitlines()
    candidates = [json.loads(line) for line in lines]
    assert sorted(candidate["prompt"] for candidate in candidates) == sorted(4 * PROMPTS)
    assert len(list((rated.folder / "images").iterdir())) == CANDIDATES
    votes = rated.votes()
    assert len([vote for vote in votes if not vote["repeat"]]) == PAIRS
    assert all(vote["choice"] == ("left" if vote["left"] < vote["right"] else "right") for vote in votes)


def test_a_pair_is_trained_compared_and_loaded(rated, front_end, server, screenshots):
    page, state = front_end.page, pack_module("nodes.training.saved_run")
    front_end.open_template(TRAIN)
    front_end.set_widgets(width=PICTURES_PIXELS, height=PICTURES_PIXELS, steps=1)
    front_end.set_widgets("CHATSPromptLines", control_after_generate="fixed")
    settings = dict(rank=2, accumulate=1, learning_rate=1e-2, resolution=PICTURES_PIXELS)
    front_end.set_widgets("CHATSTrainLoRAPair", steps=MANY_STEPS, **settings)
    page.evaluate(ADD_LOADER)
    page.evaluate(LISTEN)
    asked = front_end.inputs("CHATSTrainLoRAPair")
    assert asked["dataset"] == rated.dataset
    run = rated.folder / "runs" / str(asked["name"])
    members = [f"{asked['name']}_{member}.safetensors" for member in ("preferred", "dispreferred")]
    files = [server.base / "models" / "loras" / name for name in members]

    front_end.queue()
    page.wait_for_function(f"() => said.includes('step 1 of {MANY_STEPS}')")
    page.get_by_role("button", name="Cancel current run").click()
    assert front_end.end()["name"] == "execution_interrupted"
    taken = state.load_run(run).step
    assert 1 <= taken < MANY_STEPS
    page.get_by_text(f"stopped at step {taken} of {MANY_STEPS}").wait_for()
    front_end.screenshot(screenshots / "training-cancelled.png")
    assert not any(file.exists() for file in files)

    # So that the test ends soon: a run may be given more steps or fewer.
    steps = taken + FURTHER_STEPS
    front_end.set_widgets("CHATSTrainLoRAPair", steps=steps)
    page.evaluate("() => { said.length = 0; }")
    assert front_end.run() == SUCCESS
    assert state.load_run(run).step == steps
    said = [text for text in page.evaluate("() => said") if "step" in text]
    assert said[:2] == [f"goes on from step {taken} of {steps}", f"step {taken + 1} of {steps}"]
    page.get_by_text(f"step {steps} of {steps}: done, in loras").wait_for()
    front_end.screenshot(screenshots / "training-done.png")
    for member in map(pack_module("chats.pair").read_metadata, files):
        assert (member.dataset_name, member.dataset_pairs, member.step) == (rated.dataset, PAIRS, steps)
        assert member.base_file == front_end.inputs("CheckpointLoaderSimple")["ckpt_name"]
        assert member.held_out_accuracy in (0, 1)  # of one pair in ten
    base, pair = (pictures(server, f"taste_sd15_{name}") for name in ("base", "pair"))
    assert len(base) == len(pair) == 1
    assert base[0].std() > 0
    assert not np.array_equal(base[0], pair[0])

    # The loader that was there before has the files to choose, and they are the pair.
    page.wait_for_function(LISTED, arg=members)
    page.evaluate(CHOOSE, members)
    saved = (run / state.FILE).stat().st_mtime_ns
    assert front_end.run() == SUCCESS
    page.get_by_text("done before, nothing to train").wait_for()
    assert (run / state.FILE).stat().st_mtime_ns == saved
    front_end.screenshot(screenshots / "training-loaded.png")
    _, loaded = pictures(server, "taste_sd15_pair")
    assert np.array_equal(loaded, pair[0])


def pictures(server, prefix: str) -> list[np.ndarray]:
    """What was saved under a name, in turn, each [height, width, 3] of 0 to 255."""
    found = []
    for file in sorted((server.base / "output").glob(f"{prefix}_*.png")):
        with Image.open(file) as image:
            found.append(np.asarray(image.convert("RGB"), dtype=np.float32))
    return found


@newest_only
def test_the_trainer_takes_the_same_folder(rated, tmp_path):
    in_the_trainers_python("check_rated.py", tmp_path, str(rated.folder))
    said = (tmp_path / "script.log").read_text(encoding="utf-8")
    assert f"data: {rated.dataset}: {PAIRS} pairs" in said
    assert f"{CANDIDATES} candidates for {len(PROMPTS)} prompts, {PAIRS} pairs rated: {PAIRS} decided" in said
