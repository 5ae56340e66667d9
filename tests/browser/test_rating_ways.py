"""Other ways to the same votes: fingers, windows of other sizes, a page loaded anew, and several users."""

from __future__ import annotations

import json

import pytest
from conftest import is_newest
from page import FrontEnd
from rating_page import COLOURS, Rating, put
from serving import ROOT, running_server

pytestmark = pytest.mark.skipif(not is_newest(), reason="tried in the newest front end")

SMALL, LARGE = {"width": 1280, "height": 720}, {"width": 3840, "height": 2160}
PROMPTS = {"a red house": COLOURS[:3], "two cats": COLOURS[3:6]}
BUTTONS = ("left", "right", "tie", "skip", "back", "zoom", "close")
TRANSFORMS = "() => ['left', 'right'].map(side => document.querySelector(`img[data-side=${side}]`).style.transform)"
# What is in the middle of an element is the element, or in it.
UNCOVERED = """element => {
    const {left, top, width, height} = element.getBoundingClientRect();
    return element.contains(document.elementFromPoint(left + width / 2, top + height / 2));
}"""


@pytest.fixture(scope="module")
def front_end(browser, server):
    context = browser.new_context(viewport=SMALL, has_touch=True)
    running = FrontEnd(browser, server, nodes_2=True, context=context)
    yield running
    context.close()


@pytest.fixture
def rating(request, front_end, server):
    """A data set of its own for each test, open in the dialog."""
    running = Rating(front_end.page, server, request.node.name.removeprefix("test_"))
    put(server, running.dataset, PROMPTS)
    running.open()
    running.wait_until_seen()
    yield running
    if running.dialog.count():
        running.close()


def text(key: str) -> str:
    texts = json.loads((ROOT / "locales" / "en" / "main.json").read_text(encoding="utf-8"))
    return texts["chatsRating"][key]


def test_all_has_a_name_and_is_inside_the_window(rating, screenshots):
    named = [rating.dialog.get_by_role("button", name=text(key), exact=True) for key in BUTTONS]
    pictures = [rating.dialog.get_by_role("img", name=text(f"{side}Picture"), exact=True) for side in ("left", "right")]
    named += [*pictures, rating.dialog.get_by_role("combobox", name=text("dataSet"))]
    named += [rating.dialog.get_by_role("textbox", name=text("guideline"))]
    assert rating.page.get_by_role("dialog", name=text("title")).count() == 1
    for size in (LARGE, SMALL):
        rating.page.set_viewport_size(size)
        rating.page.wait_for_timeout(100)
        for element in named:
            box = element.bounding_box()  # a name that two have, or none, is an error
            assert min(box["x"], box["y"]) >= 0
            assert box["x"] + box["width"] <= size["width"]
            assert box["y"] + box["height"] <= size["height"]
            assert element.evaluate(UNCOVERED), element
        cut = named[-1].evaluate("field => field.scrollHeight - field.clientHeight")
        assert cut <= 1, "the guideline is cut off"
        assert all(picture.bounding_box()["height"] > size["height"] * 0.5 for picture in pictures)
        rating.screenshot(screenshots, f"{size['width']}")


def test_fingers(rating):
    """A tap chooses, also where it comes twice; two fingers zoom both pictures and choose nothing."""
    page, seen = rating.page, rating.ids()
    panes = [rating.dialog.locator(f"[data-pane={side}]").bounding_box() for side in ("left", "right")]
    middles = [(pane["x"] + pane["width"] / 2, pane["y"] + pane["height"] / 2) for pane in panes]
    page.touchscreen.tap(*middles[1])
    page.touchscreen.tap(*middles[1])
    (vote,) = rating.wait_for_votes(1)
    assert (vote["left"], vote["right"], vote["choice"]) == (*seen, "right")
    rating.wait_until_seen()
    whole = page.evaluate(TRANSFORMS)
    assert whole[0] == whole[1]
    device, (x, y) = page.context.new_cdp_session(page), middles[0]
    for kind, apart in (("touchStart", 20), ("touchMove", 40), ("touchMove", 80), ("touchEnd", None)):
        fingers = [] if apart is None else [{"x": x - apart, "y": y, "id": 1}, {"x": x + apart, "y": y, "id": 2}]
        device.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": fingers})
    left, right = page.evaluate(TRANSFORMS)
    assert left == right != whole[0]
    page.wait_for_timeout(400)
    page.touchscreen.tap(*middles[0])  # in an enlarged picture
    rating.press("0")
    page.wait_for_timeout(400)
    page.touchscreen.tap(*middles[0])
    assert [vote["choice"] for vote in rating.wait_for_votes(2)] == ["right", "left"]


def test_a_page_that_is_loaded_anew_goes_on(rating, front_end):
    rating.press("ArrowLeft")
    rating.wait_for_votes(1)
    rating.wait_until_seen()
    seen = rating.ids()
    rating.press("ArrowUp")
    rating.wait_for_votes(2)
    rating.page.reload()
    front_end.wait_until_ready()
    rating.open()
    rating.dialog.get_by_text("2 rated").wait_for()
    rating.wait_until_seen()
    rating.press("Backspace")
    rating.wait_for_votes(1)
    left = "left => document.querySelector('img[data-side=left]')?.dataset.id === left"
    rating.page.wait_for_function(left, arg=seen[0])
    assert rating.ids() == seen
    rating.press("ArrowRight")
    assert [vote["choice"] for vote in rating.wait_for_votes(2)] == ["left", "right"]


def test_a_data_set_that_comes_meanwhile(rating, server):
    """It is offered, what is being rated stays; and with one picture it says what it takes to rate it."""
    seen, select = rating.ids(), rating.dialog.locator("select")
    put(server, "one picture", {"a lonely prompt": COLOURS[:1]})
    select.locator("option[value='one picture']").wait_for(state="attached")
    assert select.input_value() == rating.dataset
    assert rating.ids() == seen
    select.select_option("one picture")
    rating.dialog.get_by_text("There is no pair to rate yet. 1 prompt has one picture only").wait_for()
    assert not rating.nothing_left()
    rating.close()
    rating.page.evaluate("() => app.extensionManager.command.execute('Workspace.ToggleSidebarTab.chats-rate')")
    rating.page.locator(".chats-rate-list").get_by_text("1 picture, 1 prompt", exact=True).wait_for()
    rating.page.locator(".chats-rate-list").get_by_text("6 pictures, 2 prompts").first.wait_for()


def test_two_users_are_two_raters(browser, tmp_path, server_arguments):
    """The page votes as the user that it was opened for, beside one who asks the server without a page."""
    with running_server(tmp_path, "--multi-user", *server_arguments, models=False) as server:
        put(server, "shared", PROMPTS)
        anna, bert = (json.loads(server.post("/users", {"username": name})) for name in ("anna", "bert"))
        server.post("/api/settings/Comfy.TutorialCompleted", True, anna)
        rating = Rating(FrontEnd(browser, server, nodes_2=True, user=anna).page, server, "shared")
        lines = (rating.folder / "candidates.jsonl").read_text(encoding="utf-8").splitlines()
        left, right = (json.loads(line)["id"] for line in lines[:2])
        vote = {"rating": "0" * 16, "left": left, "right": right, "choice": "right", "seconds": None}
        server.post("/chats/shared/rating", vote, bert)
        rating.open()
        rating.wait_until_seen()
        rating.press("ArrowLeft")
        rating.dialog.get_by_text("1 rated").wait_for()
        raters = [vote["rater"] for vote in rating.wait_for_votes(2)]
        assert [rater.split("_")[0] for rater in raters] == ["bert", "anna"]
        rating.page.context.close()
