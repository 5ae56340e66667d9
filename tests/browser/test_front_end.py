"""What the newest front end makes of the pack beside its graphs: help, missing files, languages."""

from __future__ import annotations

import json

import pytest
from conftest import is_newest
from page import FrontEnd
from serving import ROOT

pytestmark = pytest.mark.skipif(not is_newest(), reason="the panels are those of the newest front end")


def test_the_help_panel_shows_our_page(front_end, screenshots):
    page = front_end.page
    front_end.open_template("chats_sd15_ksampler")
    page.evaluate("() => app.canvas.selectItems(app.graph.nodes.filter(node => node.type === 'CHATSApply'))")
    page.get_by_test_id("info-button").first.click()
    page.get_by_text("Joins a preferred and a dispreferred model into one MODEL", exact=False).first.wait_for()
    page.wait_for_timeout(500)
    front_end.screenshot(screenshots / "help.png")


def test_missing_files_are_named_with_their_source(front_end, server, screenshots):
    """The front end's own message, from `properties.models`."""
    workflow = json.loads(
        (ROOT / "workflows" / "chats_sd15_ksampler.json")
        .read_text(encoding="utf-8")
        .replace("chats_sd15_", "absent_sd15_")
    )
    front_end.page.evaluate("async workflow => app.loadGraphData(workflow, true, true, 'absent')", workflow)
    page = front_end.page
    page.get_by_text("View details").first.click()
    page.get_by_test_id("missing-model-download").first.wait_for()
    front_end.screenshot(screenshots / "missing.png")
    rows = page.get_by_test_id("missing-model-importable-rows").all_inner_texts()
    # What the button would fetch, without fetching it.
    page.evaluate(
        """() => {
            window.fetched = [];
            window.clickLink = HTMLAnchorElement.prototype.click;
            HTMLAnchorElement.prototype.click = function () { fetched.push(this.href); };
        }"""
    )
    for button in page.get_by_test_id("missing-model-download").all():
        button.click()
    fetched = page.evaluate("() => { HTMLAnchorElement.prototype.click = clickLink; return fetched; }")
    (wanted,) = (
        node["properties"]["models"] for node in workflow["nodes"] if node["type"] == "CHATSDiffusionModelPairLoader"
    )
    assert len(wanted) == 2
    for file in wanted:
        assert any(file["name"] in row and file["directory"] in row for row in rows), rows
        assert file["url"] in fetched


def test_a_contradicting_setting_is_shown_on_the_sampler(front_end, screenshots):
    front_end.open_template("chats_sd15_ksampler")
    front_end.set_widgets(steps=2, width=64, height=64, alpha=1.5, cfg=0.5)
    assert front_end.run()["name"] == "execution_success"
    for line in ("cfg 0.5 is below 1", "alpha 1.5 is outside 0 to 1"):
        front_end.page.get_by_text(line).first.wait_for()
    front_end.screenshot(screenshots / "advice.png")


def test_nodes_have_their_chinese_names(browser, server, screenshots):
    names = json.loads((ROOT / "locales" / "zh" / "nodeDefs.json").read_text(encoding="utf-8"))
    front_end = FrontEnd(browser, server, nodes_2=True, locale="zh")
    try:
        front_end.open_template("chats_sd15_ksampler")
        front_end.screenshot(screenshots / "chinese.png")
        assert names["CHATSApply"]["display_name"] in front_end.page.locator("body").inner_text()
    finally:
        front_end.close()
        server.post("/api/settings/Comfy.Locale", "en")
