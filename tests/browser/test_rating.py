"""Rating in the real front end: what is recorded is what was seen, keys are nobody else's, and no vote is lost."""

from __future__ import annotations

import json
import shutil

import pytest
from conftest import is_newest, pack_module
from page import FrontEnd
from rating_page import COLOURS, Rating, draw, put
from serving import ROOT

newest_only = pytest.mark.skipif(not is_newest(), reason="tried in the newest front end")
HOSTILE = "<img src=x onerror=\"document.title='broken in'\"> {count} | @:title"
PROMPTS = ("a red house", "two cats\non a wall", HOSTILE, "灯塔")
CHOICES = {"ArrowLeft": "left", "ArrowRight": "right", "ArrowUp": "tie", "ArrowDown": "skip"}
# Three pictures a prompt make three pairs.
PAIRS = 3 * len(PROMPTS)
TRANSFORMS = "() => ['left', 'right'].map(side => document.querySelector(`img[data-side=${side}]`).style.transform)"
# So that there is something to undo.
REMEMBER = """() => {
    const tracker = app.extensionManager.workflow.activeWorkflow.changeTracker;
    (tracker.captureCanvasState ?? tracker.checkState).call(tracker);
}"""
KEPT = "kept in this browser and sent again: 1. The server says: nothing was kept"
WAITS = "kept in this browser and sent again: 1. The server says: there is no data set"
GRAPH = (
    "() => JSON.stringify([app.graph.serialize().nodes, Object.keys(app.canvas.selected_nodes), app.canvas.ds.scale])"
)


@pytest.fixture(scope="module")
def second_tab(browser, server, front_end):
    """Another page of the same browser, with the same storage."""
    running = FrontEnd(browser, server, nodes_2=True, context=front_end.page.context)
    yield running
    running.close()


@pytest.fixture
def rating(request, front_end, server):
    """A data set of its own for each test, open in the dialog."""
    dataset = request.node.originalname.removeprefix("test_")
    colours = iter(COLOURS)
    make = getattr(request, "param", put)
    make(server, dataset, {prompt: [next(colours) for _ in range(3)] for prompt in PROMPTS})
    running = Rating(front_end.page, server, dataset)
    running.open()
    yield running
    if running.dialog.count():
        running.close()


@pytest.mark.parametrize("rating", [draw], ids=["drawn"], indirect=True)
def test_recorded_is_what_was_seen(rating, front_end, screenshots):
    """And no key that is pressed meanwhile does anything to the graph, whose node is selected."""
    page = rating.page
    rating.close()
    page.evaluate("() => { app.graph.clear(); app.graph.add(LiteGraph.createNode('CHATSSaveCandidates')); }")
    page.evaluate("dataset => { app.graph.nodes[0].widgets[0].value = dataset; }", rating.dataset)
    page.evaluate("() => app.canvas.selectItems(app.graph.nodes)")
    page.evaluate(REMEMBER)
    page.wait_for_timeout(300)
    graph, sent = page.evaluate(GRAPH), front_end.api_graph()
    assert [node["inputs"] for node in sent.values()] == [{"dataset": rating.dataset}], "the button is no value"
    page.locator("body").press("t")
    rating.dialog.wait_for()
    rating.close()
    page.evaluate("() => app.graph.nodes[0].widgets.find(widget => widget.type === 'button').callback()")
    rating.dialog.wait_for()
    assert rating.dialog.locator("select").input_value() == rating.dataset
    seen = []
    for key in CHOICES:
        seen.append((rating.colours(), key))
        rating.press(key)
    rating.press("r", "q", "w", "m", "Delete", "Control+z", "Control+a", "Control+c", "Control+v", ".", "Control+b")
    votes = rating.wait_for_votes(len(CHOICES))
    page.wait_for_timeout(100)
    assert page.evaluate(GRAPH) == graph
    for vote, (colours, key) in zip(votes, seen, strict=True):
        assert [rating.colour_of(vote["left"]), rating.colour_of(vote["right"])] == colours
        assert vote["choice"] == CHOICES[key]
        assert vote["rater"] == "default"
        assert 0 < vote["seconds"] < 60
    rating.screenshot(screenshots, "pair")
    names = page.evaluate("() => [...document.querySelectorAll('dialog.chats-rate img')].map(image => image.src)")
    assert not [name for name in names if "seed" in name or "safetensors" in name]
    rating.close()
    assert page.evaluate("() => document.title") != "broken in"
    rating.screenshot(screenshots, "node")


@newest_only
def test_prompts_are_only_text(rating):
    shown = set()
    for _ in range(PAIRS):
        rating.wait_until_seen()
        shown.add(rating.dialog.locator(".prompt").inner_text())
        rating.press("ArrowUp")
    assert shown >= {prompt.strip() for prompt in PROMPTS}
    assert rating.page.evaluate("() => document.title") != "broken in"


@newest_only
def test_no_key_is_lost_and_none_counts_twice(rating):
    """Pressed faster than pictures come; held down, one press is one vote."""
    keys = [*CHOICES] * 2
    slow = rating.page.context.new_cdp_session(rating.page)
    slow.send("Network.enable")
    network = {"offline": False, "downloadThroughput": -1, "uploadThroughput": -1}
    slow.send("Network.emulateNetworkConditions", {**network, "latency": 100})
    rating.press(*keys)
    votes = rating.wait_for_votes(len(keys))
    slow.send("Network.emulateNetworkConditions", {**network, "latency": 0})
    assert [vote["choice"] for vote in votes] == [CHOICES[key] for key in keys]
    assert len({frozenset((vote["left"], vote["right"])) for vote in votes if not vote["repeat"]}) == len(
        [vote for vote in votes if not vote["repeat"]]
    )
    for _ in range(5):
        rating.page.keyboard.down("ArrowLeft")
    rating.page.keyboard.up("ArrowLeft")
    rating.wait_until_sent()
    rating.wait_for_votes(len(keys) + 1)


@newest_only
def test_back_shows_the_pair_as_it_was(rating):
    rating.wait_until_seen()
    first = rating.ids()
    rating.press("ArrowLeft")
    rating.wait_for_votes(1)
    rating.press("ArrowRight", "Backspace", "Backspace")
    rating.wait_for_votes(0)
    rating.wait_until_seen()
    assert rating.ids() == first
    rating.press("Backspace", "ArrowUp")
    (vote,) = rating.wait_for_votes(1)
    assert (vote["left"], vote["right"], vote["choice"]) == (*first, "tie")


@newest_only
def test_a_vote_waits_for_the_disk_and_the_next_page_goes_on(rating, request, screenshots):
    """The folder takes nothing: its lock cannot be opened. The vote stays in the browser, where the page is loaded
    anew too."""
    rating.wait_until_seen()
    rating.press("ArrowLeft")
    rating.wait_for_votes(1)
    lock = rating.folder / ".lock"
    lock.unlink()
    lock.mkdir()
    rating.wait_until_seen()
    seen = rating.ids()
    rating.press("ArrowRight")
    rating.dialog.locator(".alerts", has_text=KEPT).wait_for()
    rating.screenshot(screenshots, "disk")
    again = Rating(request.getfixturevalue("second_tab").page, rating.server, rating.dataset)
    again.open()
    again.dialog.locator(".alerts", has_text=KEPT).wait_for()
    assert len(rating.votes()) == 1
    lock.rmdir()
    again.page.evaluate("() => dispatchEvent(new Event('online'))")
    again.wait_until_sent()
    _, vote = again.wait_for_votes(2)
    assert (vote["left"], vote["right"], vote["choice"]) == (*seen, "right")
    again.wait_until_seen()
    # This page has cast no vote: the server says which was the last.
    again.press("Backspace")
    again.wait_for_votes(1)
    again.page.wait_for_function(
        "left => document.querySelector('img[data-side=left]').dataset.id === left", arg=seen[0]
    )
    assert again.ids() == seen
    again.close()


@newest_only
def test_a_vote_waits_for_its_data_set(rating):
    """The folder is moved away, and another data set begun under its name."""
    rating.wait_until_seen()
    moved = rating.folder.with_name("moved")
    rating.folder.rename(moved)
    rating.press("ArrowLeft")
    rating.dialog.locator(".alerts", has_text=WAITS).wait_for()
    pack_module("chats.taste.dataset").TasteDataset(rating.folder).add_candidate(b"another", "another prompt")
    with rating.page.expect_response(lambda answer: "/rating" in answer.url and answer.status == 404):
        rating.page.evaluate("() => dispatchEvent(new Event('online'))")
    rating.dialog.locator(".alerts", has_text="is no candidate of this data set").wait_for()
    shutil.rmtree(rating.folder)
    moved.rename(rating.folder)
    rating.page.evaluate("() => dispatchEvent(new Event('online'))")
    rating.wait_until_sent()
    assert rating.wait_for_votes(1)[0]["choice"] == "left"


@newest_only
def test_two_tabs(rating, second_tab):
    """Until nothing is left: no pair is lost, and none counts twice. What is drawn later appears by itself."""
    other = Rating(second_tab.page, rating.server, rating.dataset)
    other.open()
    for both in (rating, other):
        both.wait_until_seen()
    # The last pairs can be in both tabs: each is asked until it says that nothing is left.
    while left := [both for both in (rating, other) if not both.nothing_left()]:
        for both in left:
            both.page.bring_to_front()
            both.press("ArrowLeft" if both is rating else "ArrowRight")
    rating.wait_until_sent()
    first = [vote for vote in rating.votes() if not vote["repeat"]]
    assert len({frozenset((vote["left"], vote["right"])) for vote in first}) == len(first) == PAIRS
    rating.page.bring_to_front()
    rating.press("ArrowLeft")
    draw(rating.server, rating.dataset, {"a late one": COLOURS[-2:]})
    rating.wait_until_seen()
    assert sorted(map(rating.colour_of, rating.ids())) == sorted(COLOURS[-2:])
    other.close()


@newest_only
def test_both_are_zoomed_and_moved_together(rating):
    page = rating.page
    rating.wait_until_seen()
    pane = rating.dialog.locator("[data-pane=left]").bounding_box()
    middle = pane["x"] + pane["width"] / 2, pane["y"] + pane["height"] / 2
    seen = set()

    def transform() -> str:
        left, right = page.evaluate(TRANSFORMS)
        assert left == right
        return left

    whole = transform()
    for act in (
        lambda: rating.press("Space"),
        lambda: rating.press("Shift+ArrowRight"),
        lambda: (page.mouse.move(*middle), page.mouse.wheel(0, -300), page.wait_for_timeout(50)),
        lambda: (page.mouse.down(), page.mouse.move(middle[0] - 60, middle[1] - 40), page.mouse.up()),
        lambda: rating.press("+"),
    ):
        act()
        assert transform() not in seen | {whole}
        seen.add(transform())
    rating.press("0")
    assert transform() == whole
    assert rating.votes() == []


@newest_only
def test_keyboard_alone(rating, screenshots):
    """Everything is reached by Tab, is seen to be, has a name, and does what it says."""
    page = rating.page
    rating.wait_until_seen()
    focus = """() => {
        const element = document.activeElement, style = getComputedStyle(element);
        const name = element.ariaLabel || element.innerText || element.labels?.[0]?.innerText;
        return [element.className || element.tagName, name?.trim(), style.outlineStyle, parseFloat(style.outlineWidth)];
    }"""
    reached = {}
    for _ in range(12):
        name, label, style, width = page.evaluate(focus)
        assert rating.dialog.evaluate("dialog => dialog.contains(document.activeElement)")
        assert label, f"{name} has no name"
        assert style != "none", f"{name} does not show its focus"
        assert width >= 2, f"{name} does not show its focus"
        reached[name] = label
        rating.press("Tab")
        if page.evaluate("() => document.activeElement === document.body"):
            rating.press("Tab")  # out to the browser's own and back
    buttons = {"back", "left", "tie", "skip", "right", "zoom", "close"}
    assert reached.keys() >= {"stage", "prompt", "SELECT", "TEXTAREA", *buttons}
    rating.dialog.locator("button.tie").focus()
    rating.press("Enter")
    assert rating.wait_for_votes(1)[0]["choice"] == "tie"
    rating.dialog.locator("textarea").focus()
    page.keyboard.type("sharp eyes, no text")
    rating.press("ArrowLeft", "Backspace", "End", "t", "Enter")
    page.wait_for_function("() => document.activeElement.className === 'stage'")
    rating.dialog.locator("textarea").focus()
    page.keyboard.type("dropped")
    rating.press("Escape")
    rating.press("ArrowDown")
    rating.wait_for_votes(2)
    assert (rating.folder / "guideline.txt").read_text(encoding="utf-8").strip() == "sharp eyes, no tett"
    rating.dialog.locator("[role=status].counts", has_text="2 rated").wait_for()
    rating.screenshot(screenshots, "keyboard")


@newest_only
def test_chinese(rating, screenshots):
    rating.close()
    setting = "locale => app.extensionManager.setting.set('Comfy.Locale', locale)"
    rating.page.evaluate(setting, "zh")
    try:
        rating.open()
        rating.wait_until_seen()
        rating.screenshot(screenshots, "chinese")
        shown = rating.dialog.inner_text()
        texts = json.loads((ROOT / "locales" / "zh" / "main.json").read_text(encoding="utf-8"))["chatsRating"]
        for key in ("title", "left", "right", "tie", "skip", "back", "guideline", "hint"):
            assert texts[key] in shown
        with (rating.folder / "candidates.jsonl").open("a", encoding="utf-8") as file:
            file.write("torn\n")
        rating.press("ArrowLeft")
        rating.dialog.locator(".alerts", has_text="跳过了 candidates.jsonl 中不完整或无法识别的行：1。").wait_for()
    finally:
        rating.page.evaluate(setting, "en")
