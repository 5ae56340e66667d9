"""The figures that the paper states (arXiv 2502.12579), in its own units."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

SD15, SDXL, DIT = "SD1.5", "SDXL", "In-house T2I"
MODELS = (SD15, SDXL, DIT)
# Parameters of the denoiser of the published bases, by which a base is taken for the paper's; the third was never
# published.
PARAMETERS = {859_520_964: SD15, 2_567_463_684: SDXL}

STANDARD, DPO, CHATS = "Standard", "Diffusion-DPO", "CHATS"
BENCHMARKS = ("anime", "concept-art", "paintings", "photo", "geneval", "dpg")
# ImageReward, HPS v2 and PickScore, in the order of BENCHMARKS (Tables 7 to 9; Table 1 is the HPS v2 of these).
_AESTHETIC = {
    (SD15, STANDARD): (
        (-134.51, 19.66, 19.46),
        (-121.69, 18.11, 19.47),
        (-123.31, 18.25, 19.53),
        (-84.69, 20.13, 20.19),
        (-111.58, 21.20, 20.46),
        (-117.39, 18.88, 19.70),
    ),
    (SD15, DPO): (
        (-95.95, 21.65, 20.13),
        (-89.71, 20.12, 20.14),
        (-97.24, 19.87, 20.08),
        (-72.05, 20.74, 20.47),
        (-95.61, 22.04, 20.72),
        (-100.05, 19.87, 20.01),
    ),
    (SD15, CHATS): (
        (34.35, 27.74, 21.38),
        (30.74, 26.17, 20.80),
        (40.53, 26.04, 20.94),
        (18.71, 26.43, 21.44),
        (-19.74, 26.17, 21.55),
        (-21.47, 24.97, 20.79),
    ),
    (SDXL, STANDARD): (
        (94.99, 30.20, 22.80),
        (90.24, 28.38, 22.19),
        (91.39, 28.19, 22.31),
        (67.31, 26.88, 22.26),
        (55.14, 28.19, 22.65),
        (48.84, 27.38, 21.99),
    ),
    (SDXL, DPO): (
        (111.73, 31.69, 23.09),
        (98.26, 29.64, 22.27),
        (108.19, 29.83, 22.42),
        (82.89, 28.34, 22.51),
        (79.19, 29.51, 22.94),
        (57.17, 28.71, 22.06),
    ),
    (SDXL, CHATS): (
        (122.73, 32.96, 23.17),
        (107.21, 30.94, 22.38),
        (114.10, 31.08, 22.55),
        (88.72, 29.62, 22.61),
        (84.72, 29.81, 22.96),
        (65.79, 29.51, 22.08),
    ),
    (DIT, STANDARD): (
        (49.23, 25.00, 20.99),
        (53.89, 23.60, 20.50),
        (53.03, 23.18, 20.48),
        (73.00, 26.09, 21.86),
        (76.61, 27.23, 22.13),
        (56.44, 25.68, 21.08),
    ),
    (DIT, DPO): (
        (65.49, 26.03, 21.27),
        (69.82, 24.87, 20.83),
        (70.20, 24.71, 20.88),
        (80.51, 26.56, 21.98),
        (84.61, 27.62, 22.24),
        (60.73, 26.16, 21.21),
    ),
    (DIT, CHATS): (
        (112.41, 30.41, 22.13),
        (114.07, 29.87, 21.66),
        (116.36, 29.95, 21.54),
        (97.02, 29.30, 22.17),
        (105.31, 29.84, 22.54),
        (89.28, 29.53, 21.66),
    ),
}
SCORERS = ("imagereward", "hpsv2", "pickscore")
# Table 2: percent.
GENEVAL = ("single_object", "two_object", "counting", "colors", "position", "color_attr", "overall")
_GENEVAL = {
    (SD15, STANDARD): (95.31, 38.13, 5.94, 75.27, 7.25, 9.25, 38.52),
    (SD15, DPO): (96.56, 49.24, 5.94, 82.71, 7.75, 9.75, 41.99),
    (SD15, CHATS): (98.75, 47.73, 20.94, 78.72, 7.75, 10.75, 44.11),
    (SDXL, STANDARD): (98.44, 68.43, 40.62, 83.78, 10.25, 20.75, 53.71),
    (SDXL, DPO): (99.53, 81.94, 45.47, 88.70, 13.25, 26.75, 59.27),
    (SDXL, CHATS): (99.38, 79.09, 53.50, 87.45, 13.90, 27.40, 60.12),
    (DIT, STANDARD): (98.75, 75.25, 37.81, 85.37, 25.75, 44.00, 61.16),
    (DIT, DPO): (99.06, 75.25, 40.00, 83.78, 27.25, 48.00, 62.22),
    (DIT, CHATS): (99.06, 82.58, 47.50, 90.16, 26.50, 52.75, 66.42),
}
# Table 3: percent.
DPG = ("global", "entity", "attribute", "relation", "other", "overall")
_DPG = {
    (SD15, STANDARD): (74.77, 68.74, 69.72, 79.11, 39.20, 57.92),
    (SD15, DPO): (81.76, 71.02, 72.78, 80.66, 38.40, 61.67),
    (SD15, CHATS): (77.51, 73.67, 74.34, 80.23, 58.80, 64.44),
    (SDXL, STANDARD): (85.41, 81.24, 78.90, 87.04, 60.80, 74.37),
    (SDXL, DPO): (84.50, 82.00, 80.16, 87.39, 67.20, 74.66),
    (SDXL, CHATS): (84.50, 82.91, 80.12, 87.47, 70.80, 76.08),
    (DIT, STANDARD): (85.11, 87.98, 87.91, 92.03, 75.60, 81.27),
    (DIT, DPO): (86.63, 88.98, 87.87, 91.91, 75.20, 82.18),
    (DIT, CHATS): (82.67, 90.11, 88.17, 92.34, 84.40, 83.72),
}
# Table 4: HPS v2 on Photo, the in-house model.
ABLATION = {
    "single model (full data), s=5": 28.64,
    "single model (preferred data), s=5": 28.70,
    "two models (w/o ref), s=5": 28.99,
    "two models, s=5": 29.15,
    "two models, s=5, α=0.5": 29.30,
}
# Table 6: pictures a second on one A100, bf16, 50 steps, at batch sizes 1 and 4.
BATCH_SIZES = (1, 4)
_THROUGHPUT = {
    (SDXL, STANDARD): (0.187, 0.217),
    (SDXL, CHATS): (0.166, 0.210),
    (DIT, STANDARD): (0.153, 0.162),
    (DIT, CHATS): (0.148, 0.158),
}


@dataclass(frozen=True)
class Quantity:
    """What one column of a table holds: a scorer's mean over a benchmark's prompts, or a benchmark's category."""

    scorer: str
    part: str


def _figures() -> dict[tuple[str, str, Quantity], float]:
    found = {}
    for (model, method), benchmarks in _AESTHETIC.items():
        for part, values in zip(BENCHMARKS, benchmarks, strict=True):
            for scorer, value in zip(SCORERS, values, strict=True):
                found[model, method, Quantity(scorer, part)] = value
    tables: tuple[tuple[str, tuple[str, ...], Mapping[tuple[str, str], tuple[float, ...]]], ...] = (
        ("geneval", GENEVAL, _GENEVAL),
        ("dpg", DPG, _DPG),
        ("throughput", tuple(map(str, BATCH_SIZES)), _THROUGHPUT),
    )
    for scorer, parts, table in tables:
        for (model, method), row in table.items():
            for part, value in zip(parts, row, strict=True):
                found[model, method, Quantity(scorer, part)] = value
    for method, value in ABLATION.items():
        found[DIT, method, Quantity("hpsv2", "photo")] = value
    return found


# By model, method and quantity.
FIGURES = _figures()
