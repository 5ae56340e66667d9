"""GenEval (Ghosh et al. 2023, arXiv 2310.11513): what a prompt asks for, and whether what was detected fulfils it.

Classes, colours, thresholds and rules are those of its published scorer (github.com/djghosh13/geneval,
evaluation/evaluate_images.py at af4902f). Its filter of overlapping boxes is switched off there by default, so there is
none here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ...support.errors import UserError
from ..prompts import EvaluationPrompt

# In the order of its table.
CATEGORIES: tuple[str, ...] = ("single_object", "two_object", "counting", "colors", "position", "color_attr")
# COCO's 80, as the benchmark calls them.
# fmt: off
CLASSES = (
    "person", "bicycle", "car", "motorcycle", "airplane", "bus", "train", "truck", "boat", "traffic light",
    "fire hydrant", "stop sign", "parking meter", "bench", "bird", "cat", "dog", "horse", "sheep", "cow",
    "elephant", "bear", "zebra", "giraffe", "backpack", "umbrella", "handbag", "tie", "suitcase", "frisbee",
    "skis", "snowboard", "sports ball", "kite", "baseball bat", "baseball glove", "skateboard", "surfboard",
    "tennis racket", "bottle", "wine glass", "cup", "fork", "knife", "spoon", "bowl", "banana", "apple",
    "sandwich", "orange", "broccoli", "carrot", "hot dog", "pizza", "donut", "cake", "chair", "couch",
    "potted plant", "bed", "dining table", "toilet", "tv", "laptop", "computer mouse", "tv remote",
    "computer keyboard", "cell phone", "microwave", "oven", "toaster", "sink", "refrigerator", "book", "clock",
    "vase", "scissors", "teddy bear", "hair drier", "toothbrush",
)
# fmt: on
COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white")
POSITIONS = ("left of", "right of", "above", "below")
# A detection counts above it; where objects are counted, above the second.
CONFIDENCE, COUNTING_CONFIDENCE = 0.3, 0.9
# Of one class in a picture, the most confident.
MOST_OBJECTS = 16
# How far apart the centres must be beyond it, as a share of the two boxes' sizes together.
POSITION_MARGIN = 0.1
# A direction counts where it has more of the distance than this share.
DIRECTION_SHARE = 0.5

# x0, y0, x1, y1 in pixels, the last two exclusive.
Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class Detection:
    """An object in a picture: its class, confidence (0 to 1), box, and mask [height, width] of booleans."""

    name: str
    confidence: float
    box: Box
    mask: np.ndarray


# The colour of each of some objects of one class.
NameColours = Callable[[str, Sequence[Detection]], list[str]]


@dataclass(frozen=True)
class Requirement:
    """So many objects of a class; of a colour, or each in a position to each object of an earlier requirement."""

    name: str
    count: int
    colour: str | None = None
    position: str | None = None
    target: int | None = None


@dataclass(frozen=True)
class Task:
    """What a prompt asks for: its category, what must be there, and of what there must be fewer than a count."""

    category: str
    include: tuple[Requirement, ...]
    exclude: tuple[Requirement, ...]


def read_task(prompt: EvaluationPrompt) -> Task | None:
    """The task of one of GenEval's prompts, None for a prompt of another source.

    Raises:
        UserError: when its line of evaluation_metadata.jsonl asks for what the benchmark does not know.
    """
    if "include" not in prompt.metadata or "tag" not in prompt.metadata:
        return None
    try:
        category = prompt.metadata["tag"]
        _require(category in CATEGORIES, f"the category {category!r}")
        include, exclude = (_requirements(prompt.metadata.get(each, [])) for each in ("include", "exclude"))
        _require(bool(include), "no object")
    except (TypeError, KeyError, ValueError, AttributeError) as error:
        raise UserError(
            f"`--prompts`: GenEval's prompt {prompt.text!r} cannot be scored ({error}); give the benchmark's own "
            "evaluation_metadata.jsonl"
        ) from error
    return Task(category, include, exclude)


def _requirements(rows: Sequence[Mapping[str, Any]]) -> tuple[Requirement, ...]:
    found: list[Requirement] = []
    for row in rows:
        name, count, colour = row["class"], int(row["count"]), row.get("color")
        position, target = row.get("position") or (None, None)
        _require(name in CLASSES, f"the class {name!r}")
        _require(count > 0, f"the count {count}")
        _require(colour is None or colour in COLOURS, f"the colour {colour!r}")
        _require(position is None or position in POSITIONS, f"the position {position!r}")
        _require(target is None or target in range(len(found)), f"a position to object {target!r}")
        found.append(Requirement(name, count, colour, position, target))
    return tuple(found)


def _require(known: bool, what: str) -> None:
    if not known:
        raise ValueError(f"it asks for {what}")


def keep_confident(detections: Iterable[Detection], category: str) -> dict[str, list[Detection]]:
    """The objects that count for a category, by class, the most confident first."""
    least = COUNTING_CONFIDENCE if category == "counting" else CONFIDENCE
    found: dict[str, list[Detection]] = {}
    for detection in sorted(detections, key=lambda each: -each.confidence):
        own = found.setdefault(detection.name, [])
        if detection.confidence > least and len(own) < MOST_OBJECTS:
            own.append(detection)
    return found


def find_faults(task: Task, objects: Mapping[str, Sequence[Detection]], name_colours: NameColours) -> list[str]:
    """What a picture lacks, in words; a picture without a fault is right. Of each required class the most confident
    objects are looked at, as many as are asked for.

    Args:
        objects: by class, the most confident first.
        name_colours: looks at the objects of a class.
    """
    faults: list[str] = []
    matched: list[Sequence[Detection]] = []
    for wanted in task.include:
        found = objects.get(wanted.name, [])[: wanted.count]
        fault = _fault(wanted, found, matched, name_colours)
        if fault:
            faults.append(fault)
        matched.append([] if fault else found)
    for unwanted in task.exclude:
        count = len(objects.get(unwanted.name, []))
        if count >= unwanted.count:
            faults.append(f"{count} × {unwanted.name}, where fewer than {unwanted.count} are asked for")
    return faults


def _fault(
    wanted: Requirement,
    found: Sequence[Detection],
    matched: Sequence[Sequence[Detection]],
    name_colours: NameColours,
) -> str | None:
    """What is wrong with the objects that were found for a requirement.

    Args:
        matched: those that fulfil each earlier requirement, none where it is not fulfilled.
    """
    if len(found) < wanted.count:
        return f"{len(found)} of {wanted.count} × {wanted.name}"
    if wanted.colour is not None:
        colours = name_colours(wanted.name, found)
        if colours.count(wanted.colour) < wanted.count:
            return f"{wanted.name}: {', '.join(colours)} instead of {wanted.colour}"
    if wanted.target is not None:
        targets = matched[wanted.target]
        if not targets:
            return f"nothing that {wanted.name} could be {wanted.position}"
        pairs = [(one, target) for one in found for target in targets]
        if not all(wanted.position in relations(one.box, target.box) for one, target in pairs):
            return f"{wanted.name} is not {wanted.position} {targets[0].name}"
    return None


def relations(box: Box, target: Box) -> set[str]:
    """Where a box is, seen from the target: none, one or two of :data:`POSITIONS`. What counts is how far the centres
    are apart beyond :data:`POSITION_MARGIN`, over the centres' distance."""
    offset, beyond = np.zeros(2), np.zeros(2)
    for axis in (0, 1):
        sizes = abs(box[axis + 2] - box[axis]) + abs(target[axis + 2] - target[axis])
        offset[axis] = (box[axis] + box[axis + 2] - target[axis] - target[axis + 2]) / 2
        beyond[axis] = np.sign(offset[axis]) * max(abs(offset[axis]) - POSITION_MARGIN * sizes, 0)
    if np.abs(beyond).max() < 1e-3:
        return set()
    x, y = beyond / np.linalg.norm(offset)
    directions = {"left of": -x, "right of": x, "above": -y, "below": y}
    return {name for name, share in directions.items() if share > DIRECTION_SHARE}
