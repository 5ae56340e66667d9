"""Draws `workflows/<name>.jpg`, which the front end's template browser shows: each graph as the real front end draws
it, under a title.

COMFYUI_PATH=<ComfyUI> <ComfyUI's python with playwright> tests/browser/draw_thumbnails.py [NAME …]
"""

import io
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
import importlib.util

SIDE, HEIGHT = 640, 480
MARGIN = 12
QUALITY = 88
TITLE_SIZE, TITLE_HEIGHT = 32, 56
BACKGROUND, INK = "#141414", "#ffffff"
TITLES = {
    "chats_img2img_inpaint": "Image to image, inpainting",
    "chats_sd15_extracted_lora": "SD1.5, one model and a LoRA",
    "chats_sd15_ksampler": "SD1.5, KSampler",
    "chats_sd35_flow": "SD3.5",
    "chats_sdxl_guider": "SDXL, custom sampling",
    "chats_sdxl_ksampler": "SDXL, all in one node",
    "chats_sdxl_lora_pair": "SDXL, two LoRAs",
    "chats_upscale": "SDXL, upscale",
    "chats_vs_cfg_sd15": "CFG against CHATS, SD1.5",
    "chats_vs_cfg_sdxl": "CFG against CHATS, SDXL",
    "taste_1_draw_sd15": "Your taste, 1: draw, SD1.5",
    "taste_1_draw_sdxl": "Your taste, 1: draw, SDXL",
    "taste_1_draw_z_image": "Your taste, 1: draw, Z-Image",
    "taste_2_train_and_compare_sd15": "Your taste, 2: train, SD1.5",
    "taste_2_train_and_compare_sdxl": "Your taste, 2: train, SDXL",
    "taste_2_train_and_compare_z_image": "Your taste, 2: train, Z-Image",
    "taste_3_distill_and_compare_sdxl": "Your taste, 3: one LoRA, SDXL",
    "taste_4_one_lora_core_nodes_sdxl": "Your taste, 4: use it, SDXL",
}


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

    with (
        tempfile.TemporaryDirectory() as scratch,
        running_server(Path(scratch), *tests.front_end_arguments()) as server,
    ):
        server.post("/api/settings/Comfy.TutorialCompleted", True)
        server.post("/api/settings/Comfy.Minimap.Visible", False)
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=tests.CHROMIUM, args=tests.CHROMIUM_ARGUMENTS)
            front_end = FrontEnd(browser, server, nodes_2=True)
            for path in sorted((ROOT / "workflows").glob("*.json")):
                if sys.argv[1:] and path.stem not in sys.argv[1:]:
                    continue
                front_end.open_template(path.stem)
                graph = Image.open(io.BytesIO(front_end.page.screenshot(clip=front_end.graph_area(MARGIN)))).convert(
                    "RGB"
                )
                titled(graph, TITLES[path.stem]).save(path.with_suffix(".jpg"), quality=QUALITY, optimize=True)


def titled(graph, title: str):
    """A card of SIDE × HEIGHT pixels: the title, and the graph as large as it fits below."""
    from PIL import Image, ImageDraw, ImageFont, ImageOps

    card = Image.new("RGB", (SIDE, HEIGHT), BACKGROUND)
    font = ImageFont.load_default(TITLE_SIZE)
    ImageDraw.Draw(card).text((SIDE // 2, TITLE_HEIGHT // 2), title, INK, font, anchor="mm")
    graph = ImageOps.contain(graph, (SIDE, HEIGHT - TITLE_HEIGHT), Image.Resampling.LANCZOS)
    card.paste(graph, ((SIDE - graph.width) // 2, TITLE_HEIGHT))
    return card


if __name__ == "__main__":
    main()
