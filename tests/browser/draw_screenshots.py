"""Draws `assets/rating.jpg`, `assets/rating_node.jpg` and `assets/training_node.jpg`, which docs/taste.md shows, and
the picture on the help pages of the nodes that draw: the real dialog and nodes, over pictures that scenes.py draws.

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
# Of the mini model's training, and where in it the picture is taken.
SHOWN_STEP, STEPS = 56, 80
TRAINING = {"rank": 4, "steps": STEPS, "accumulate": 1, "learning_rate": 5e-4, "resolution": 64, "preview_every": 0}
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
        draw_training(front_end, base, ROOT / "assets" / "training_node.jpg")


def draw_training(front_end, base: Path, path: Path) -> None:
    """The training node of the workflow at work on a mini model, over pictures of two hues, one of which is better."""
    import scenes
    from conftest import pack_module

    front_end.page.evaluate("() => app.extensionManager.command.execute('Workspace.ToggleSidebarTab.chats-rate')")
    front_end.page.set_viewport_size({"width": 1600, "height": 1000})
    front_end.open_template("taste_2_train_and_compare_sd15")
    front_end.set_widgets("CHATSTrainLoRAPair", **TRAINING)
    # The node below it would be in the picture.
    front_end.page.evaluate("() => app.graph.remove(app.graph.nodes.find(node => node.type === 'PreviewImage'))")
    dataset = str(front_end.inputs("CHATSTrainLoRAPair")["dataset"])
    kept = pack_module("chats.taste.dataset").TasteDataset(base / "output" / "chats" / dataset)
    for number in range(40):
        pair = [scenes.png(2 * number + side, 64, 64) for side in range(2)]
        pair.sort(key=brightness)
        left, right = (kept.add_candidate(picture, scenes.PROMPTS[number % 4])[0] for picture in pair)
        assert kept.vote(f"{number:016x}", left, right, "right", "default")
    front_end.queue()
    front_end.page.get_by_text(f"step {SHOWN_STEP} of {STEPS}").wait_for(timeout=600_000)
    node = next(number for number, node in front_end.nodes().items() if node["type"] == "CHATSTrainLoRAPair")
    front_end.page.evaluate(
        """id => {
            const [x, y] = app.graph.getNodeById(id).pos;
            app.canvas.ds.scale = 1;
            app.canvas.ds.offset = [200 - x, 120 - y];
            app.canvas.setDirty(true, true);
        }""",
        node,
    )
    front_end.page.wait_for_timeout(1500)
    save(front_end, path, clip=front_end.page.locator(f"[data-node-id='{node}']").bounding_box())


def brightness(picture: bytes) -> float:
    from PIL import Image

    with Image.open(io.BytesIO(picture)) as image:
        return sum(image.convert("L").tobytes()) / image.width / image.height


def save(front_end, path: Path, **options) -> None:
    from PIL import Image

    with Image.open(io.BytesIO(front_end.page.screenshot(**options))) as picture:
        picture.convert("RGB").save(path, quality=QUALITY, optimize=True)


if __name__ == "__main__":
    main()
