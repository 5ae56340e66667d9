"""Draws `workflows/<name>.jpg`, which the front end's template browser shows: each graph as the real front end draws it.

COMFYUI_PATH=<ComfyUI> <ComfyUI's python with playwright> tests/browser/draw_thumbnails.py
"""

import io
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
import importlib.util

SIDE = 640
MARGIN = 24
QUALITY = 85


def main() -> None:
    spec = importlib.util.spec_from_file_location("browser_tests", Path(__file__).with_name("conftest.py"))
    tests = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tests)
    if tests.MISSING:
        sys.exit(f"no thumbnails: {tests.MISSING}")
    from page import FrontEnd
    from PIL import Image
    from playwright.sync_api import sync_playwright
    from serving import ROOT, running_server

    with tempfile.TemporaryDirectory() as scratch, running_server(Path(scratch), *tests.front_end_arguments()) as server:
        server.post("/api/settings/Comfy.TutorialCompleted", True)
        server.post("/api/settings/Comfy.Minimap.Visible", False)
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=tests.CHROMIUM, args=tests.CHROMIUM_ARGUMENTS)
            front_end = FrontEnd(browser, server, nodes_2=True)
            for path in sorted((ROOT / "workflows").glob("*.json")):
                front_end.open_template(path.stem)
                picture = Image.open(io.BytesIO(front_end.page.screenshot(clip=front_end.graph_area(MARGIN)))).convert("RGB")
                picture.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
                picture.save(path.with_suffix(".jpg"), quality=QUALITY, optimize=True)


if __name__ == "__main__":
    main()
