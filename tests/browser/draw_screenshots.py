"""Draws `assets/rating.jpg` and `assets/rating_node.jpg`, which docs/taste.md shows, and the picture on the help pages
of the nodes that draw: the real dialog and nodes, over pictures that scenes.py draws.

COMFYUI_PATH=<ComfyUI> <ComfyUI's python with playwright> tests/browser/draw_screenshots.py
"""

import importlib.util
import io
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

SIZE = {"width": 1280, "height": 720}
QUALITY, MARGIN_PIXELS = 85, 12
DATA_SETS = {"evening light": 40, "portraits of hills": 80}
GUIDELINE = "The light decides: believable, soft, with a reflection that fits. Then the shape of the hills."
VOTES = ("ArrowLeft", "ArrowRight", "ArrowLeft", "ArrowUp", "ArrowRight", "ArrowRight", "ArrowDown")
# What a user has in front of him when the first candidates are drawn.
GRAPH = """async ([file, prompt]) => {
    app.graph.clear();
    const add = (type, x, y, width) => {
        const node = LiteGraph.createNode(type);
        node.pos = [x, y];
        app.graph.add(node);
        if (width) node.setSize([width, node.size[1]]);
        return node;
    };
    const pictures = add('LoadImage', 0, 0, 300), lines = add('CHATSPromptLines', 0, 420, 300);
    const save = add('CHATSSaveCandidates', 360, 0, 420);
    pictures.widgets[0].value = file;
    lines.widgets[0].value = prompt;
    lines.widgets[1].value = 0;
    pictures.connect(0, save, 0);
    lines.connect(0, save, 1);
    save.widgets[0].value = 'evening light';
}"""


def main() -> None:
    spec = importlib.util.spec_from_file_location("browser_tests", Path(__file__).with_name("conftest.py"))
    tests = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tests)
    if tests.MISSING:
        sys.exit(f"no screenshots: {tests.MISSING}")
    import scenes
    from conftest import pack_module
    from page import FrontEnd
    from playwright.sync_api import sync_playwright
    from rating_page import Rating
    from serving import ROOT, running_server

    with (
        tempfile.TemporaryDirectory() as scratch,
        running_server(Path(scratch), *tests.front_end_arguments()) as server,
        sync_playwright() as playwright,
    ):
        base = Path(scratch) / "base"
        for name, seed in DATA_SETS.items():
            kept = pack_module("chats.taste.dataset").TasteDataset(base / "output" / "chats" / name)
            for number, prompt in enumerate(scenes.PROMPTS):
                for candidate in range(4):
                    picture = scenes.png(seed + 4 * number + candidate)
                    kept.add_candidate(picture, prompt, width=1024, height=1024)
        # Load Image makes a batch of a file's frames.
        first, *others = [scenes.scene(seed, 512, 512) for seed in range(1, 5)]
        first.save(base / "input" / "drawn.webp", lossless=True, save_all=True, append_images=others)
        for setting, value in (("TutorialCompleted", True), ("Minimap.Visible", False)):
            server.post(f"/api/settings/Comfy.{setting}", value)
        browser = playwright.chromium.launch(executable_path=tests.CHROMIUM, args=tests.CHROMIUM_ARGUMENTS)
        front_end = FrontEnd(browser, server, nodes_2=True)
        front_end.page.set_viewport_size(SIZE)
        rating = Rating(front_end.page, server, next(iter(DATA_SETS)))
        rating.open()
        rating.dialog.locator("textarea").fill(GUIDELINE)
        rating.press("Enter")
        for key in VOTES:
            rating.wait_until_seen()
            rating.press(key)
        rating.dialog.get_by_text(f"{len(VOTES)} rated").wait_for()
        rating.wait_until_seen()
        front_end.page.wait_for_timeout(500)
        save(front_end, ROOT / "assets" / "rating.jpg")
        rating.close()
        front_end.page.evaluate(GRAPH, ["drawn.webp", scenes.PROMPTS[3]])
        front_end.run()
        front_end.settle()
        nodes = ROOT / "web" / "docs" / "images" / "CHATSSaveCandidates.jpg"
        save(front_end, nodes, clip=front_end.graph_area(MARGIN_PIXELS))
        front_end.page.evaluate("() => app.extensionManager.command.execute('Workspace.ToggleSidebarTab.chats-rate')")
        front_end.settle()
        front_end.page.evaluate(
            "() => { app.canvas.ds.offset[0] += 170 / app.canvas.ds.scale; app.canvas.setDirty(true, true); }"
        )
        front_end.page.get_by_text("Job queued").first.wait_for(state="hidden")
        front_end.page.wait_for_timeout(1000)
        save(front_end, ROOT / "assets" / "rating_node.jpg")


def save(front_end, path: Path, **options) -> None:
    from PIL import Image

    with Image.open(io.BytesIO(front_end.page.screenshot(**options))) as picture:
        picture.convert("RGB").save(path, quality=QUALITY, optimize=True)


if __name__ == "__main__":
    main()
