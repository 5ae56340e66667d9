"""The rating dialog as a person has it: candidates of plain colours drawn by the node, keys, and what the pixels
show."""

from __future__ import annotations

import io
import itertools
import json
import time
from pathlib import Path

from conftest import pack_module
from PIL import Image
from serving import Server

WAIT_SECONDS = 15
SIDE = 32
# Well apart, so that a pixel of a screenshot tells which it is.
LEVELS = (40, 130, 220)
COLOURS = [colour for colour in itertools.product(LEVELS, repeat=3) if len(set(colour)) > 1]
DIALOG, DONE = "dialog.chats-rate", "Every pair is rated"
SEEN = """() => {
    const pictures = [...document.querySelectorAll('dialog.chats-rate img[data-side]')];
    return pictures.length === 2 && pictures.every(picture => picture.complete && picture.naturalWidth);
}"""


Prompts = dict[str, list[tuple[int, int, int]]]


def put(server: Server, dataset: str, prompts: Prompts) -> list[str]:
    """Keeps candidates for each prompt, pictures of one colour each, as the node does and without running it; their
    ids."""
    kept, ids = kept_in(server, dataset), []
    for prompt, colours in prompts.items():
        for colour in colours:
            stream = io.BytesIO()
            Image.new("RGB", (SIDE, SIDE), colour).save(stream, "PNG")
            ids.append(kept.add_candidate(stream.getvalue(), prompt, width=SIDE, height=SIDE)[0])
    return ids


def put_rated(server: Server, dataset: str) -> None:
    """Keeps two pairs and which of each is better."""
    first, other, *rest = put(server, dataset, {"a red house": COLOURS[:2], "two cats": COLOURS[2:4]})
    for number, (left, right) in enumerate([(first, other), rest]):
        assert kept_in(server, dataset).vote(f"{number:016x}", left, right, "left", "default")


def kept_in(server: Server, dataset: str):
    return pack_module("chats.taste.dataset").TasteDataset(folder_of(server, dataset))


def folder_of(server: Server, dataset: str) -> Path:
    return server.log.parent / "base" / "output" / "chats" / dataset


def draw(server: Server, dataset: str, prompts: Prompts) -> None:
    """Runs a graph with a node that saves candidates for each prompt: pictures of one colour each."""
    graph: dict[str, dict] = {}

    def node(kind: str, **inputs: object) -> list:
        graph[str(len(graph))] = {"class_type": kind, "inputs": inputs}
        return [str(len(graph) - 1), 0]

    for prompt, colours in prompts.items():
        batch = None
        for red, green, blue in colours:
            colour = red << 16 | green << 8 | blue
            picture = node("EmptyImage", width=SIDE, height=SIDE, batch_size=1, color=colour)
            batch = picture if batch is None else node("ImageBatch", image1=batch, image2=picture)
        node("CHATSSaveCandidates", images=batch, prompt=prompt, dataset=dataset)
    server.run(graph)


class Rating:
    """A data set on the server's disk, and its dialog in a page."""

    def __init__(self, page, server: Server, dataset: str):
        self.page, self.server, self.dataset = page, server, dataset
        self.folder = folder_of(server, dataset)
        self.dialog = page.locator(DIALOG)

    def open(self) -> None:
        """By the command, with this data set chosen as a person does."""
        self.page.evaluate("() => app.extensionManager.command.execute('CHATS.Rate')")
        select = self.dialog.locator("select")
        select.locator(f"option[value='{self.dataset}']").wait_for(state="attached")
        select.select_option(self.dataset)
        self.dialog.locator(".stage").focus()

    def close(self) -> None:
        self.page.keyboard.press("Escape")
        self.dialog.wait_for(state="detached")

    def wait_until_seen(self) -> None:
        self.page.wait_for_function(SEEN)

    def wait_for_a_pair(self) -> bool:
        """False where every pair is rated."""
        self.page.wait_for_function(
            f"() => ({SEEN})() || document.querySelector('{DIALOG}').innerText.includes('{DONE}')"
        )
        return not self.nothing_left()

    def nothing_left(self) -> bool:
        return self.dialog.get_by_text(DONE).is_visible()

    def ids(self) -> tuple[str, str]:
        """The ids of the left and the right picture, as the elements have them."""
        left, right = (self.dialog.locator(f"img[data-side={side}]") for side in ("left", "right"))
        return left.get_attribute("data-id"), right.get_attribute("data-id")

    def colours(self) -> list[tuple[int, ...]]:
        """What is seen in the middle of the left and of the right half, by a screenshot."""
        self.wait_until_seen()
        stage = self.dialog.locator(".stage")
        with Image.open(io.BytesIO(stage.screenshot())) as shot:
            picture = shot.convert("RGB")
        return [picture.getpixel((picture.width * quarter // 4, picture.height // 2)) for quarter in (1, 3)]

    def colour_of(self, name: str) -> tuple[int, ...]:
        """The colour of a candidate, from its file."""
        with Image.open(self.folder / "images" / f"{name}.png") as image:
            return image.convert("RGB").getpixel((0, 0))

    def press(self, *keys: str) -> None:
        for key in keys:
            self.page.keyboard.press(key)

    def wait_until_sent(self) -> None:
        empty = "() => !Object.keys(localStorage).some(key => key.startsWith('chats.unsent.'))"
        self.page.wait_for_function(empty)

    def lines(self) -> list[dict]:
        """ratings.jsonl."""
        file = self.folder / "ratings.jsonl"
        return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()] if file.exists() else []

    def votes(self) -> list[dict]:
        """The votes in force."""
        lines = self.lines()
        undone = {line["undo"] for line in lines if "undo" in line}
        return [line for line in lines if "rating" in line and line["rating"] not in undone]

    def wait_for_votes(self, count: int) -> list[dict]:
        deadline = time.monotonic() + WAIT_SECONDS
        while len(votes := self.votes()) != count:
            assert time.monotonic() < deadline, f"{len(votes)} votes in force, wanted {count}: {votes}"
            self.page.wait_for_timeout(50)
        return votes

    def screenshot(self, folder: Path, name: str) -> None:
        self.page.screenshot(path=folder / f"rating-{name}.png")
