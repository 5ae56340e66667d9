"""A workflow file held against a server's `/object_info`, and turned into the graph that `POST /prompt` takes.

The front end does both silently: it fills widgets by position, so one value too many shifts all that follow.
"""

from __future__ import annotations

from collections.abc import Iterator

NOTES = {"Note", "MarkdownNote"}  # nodes of the front end; the server does not know them
FILE_SUFFIXES = (".safetensors", ".png")
BYPASSED = 4
SEED_CONTROLS = ["fixed", "increment", "decrement", "randomize"]
# Values that the front end adds after a widget, by the option of the schema that asks for them.
ADDED_WIDGETS = {
    "control_after_generate": ("COMBO", {"options": SEED_CONTROLS}),
    "image_upload": ("COMBO", {"options": ["image"]}),
}


def inputs_of(schema: dict) -> dict[str, tuple[str, dict]]:
    """Each input of a node as (type, options), in the schema's order; a combo's choices under `options`, however they
    came."""
    inputs = {}
    for kind in ("required", "optional"):
        for name, (stated, *rest) in schema["input"].get(kind, {}).items():
            options = rest[0] if rest else {}
            inputs[name] = ("COMBO", {**options, "options": stated}) if isinstance(stated, list) else (stated, options)
    return inputs


def widgets_of(schema: dict) -> dict[str, tuple[str, dict]]:
    """The widgets of a node in the order of `widgets_values`, with those that the front end adds."""
    widgets = {}
    for name, (kind, options) in inputs_of(schema).items():
        if _is_widget(kind, options):
            widgets[name] = (kind, options)
            widgets.update({f"{name}.{added}": widget for added, widget in ADDED_WIDGETS.items() if options.get(added)})
    return widgets


def sockets_of(schema: dict) -> list[tuple[str, str]]:
    """Name and type of the inputs that only a link can fill, in the order of their slots."""
    return [(name, kind) for name, (kind, options) in inputs_of(schema).items() if not _is_widget(kind, options)]


def _is_widget(kind: str, options: dict) -> bool:
    return kind in WIDGET_ERRORS and not options.get("forceInput")


def _number_error(value: object, options: dict, kinds: tuple[type, ...]) -> str | None:
    if not isinstance(value, kinds) or isinstance(value, bool):
        return f"is no {kinds[-1].__name__}"
    if not options["min"] <= value <= options["max"]:
        return f"is not within {options['min']} and {options['max']}"
    return None


def _combo_error(value: object, options: dict) -> str | None:
    if isinstance(value, str) and value.endswith(FILE_SUFFIXES):
        return None  # which files exist is up to the machine
    return None if value in options["options"] else f"is not one of {options['options']}"


# What is wrong with a value, in words, by the type of its widget.
WIDGET_ERRORS = {
    "INT": lambda value, options: _number_error(value, options, (int,)),
    "FLOAT": lambda value, options: _number_error(value, options, (int, float)),
    "STRING": lambda value, options: None if isinstance(value, str) else "is no text",
    "BOOLEAN": lambda value, options: None if isinstance(value, bool) else "is neither true nor false",
    "COMBO": _combo_error,
}


def executed_nodes(workflow: dict) -> list[dict]:
    return [node for node in workflow["nodes"] if node["type"] not in NOTES]


def widget_errors(workflow: dict, object_info: dict) -> Iterator[str]:
    """Each widget value that its schema would not take, and each node with too many or too few."""
    for node in executed_nodes(workflow):
        values, widgets = node["widgets_values"], widgets_of(object_info[node["type"]])
        if len(values) != len(widgets):
            yield f"{node['type']} has {len(values)} values for the widgets {list(widgets)}"
            continue
        for value, (name, (kind, options)) in zip(values, widgets.items(), strict=True):
            if error := WIDGET_ERRORS[kind](value, options):
                yield f"{node['type']}: `{name}` = {value!r} {error}"


def link_errors(workflow: dict, object_info: dict) -> Iterator[str]:
    """Each slot that differs from its schema in name, type or place: old front ends connect by place."""
    for node in executed_nodes(workflow):
        schema = object_info[node["type"]]
        stated = [(slot["name"], slot["type"]) for slot in node["inputs"] if "widget" not in slot]
        if stated != sockets_of(schema):
            yield f"{node['type']} has the inputs {stated}, the schema {sockets_of(schema)}"
        widgets = widgets_of(schema)
        for place, slot in enumerate(node["inputs"]):
            if "widget" in slot and (
                place < len(stated)
                or slot["widget"] != {"name": slot["name"]}
                or widgets.get(slot["name"], ("no widget",))[0] != slot["type"]
            ):
                yield f"{node['type']} has the connected widget {slot}, the schema {list(widgets)}"
        stated = [(slot["name"], slot["type"]) for slot in node["outputs"]]
        # Newer versions give SaveImage an output; a node may have more outputs than the file knows.
        outputs = list(zip(schema["output_name"], schema["output"], strict=True))[: len(stated)]
        if stated != outputs:
            yield f"{node['type']} has the outputs {stated}, the schema {outputs}"


def to_api(workflow: dict, object_info: dict) -> dict[str, dict]:
    """The graph of `POST /prompt`: a node's widgets by name, its links as [node id, slot], bypassed nodes passed
    through."""
    nodes = {node["id"]: node for node in executed_nodes(workflow)}
    links = {link[0]: (link[1], link[2]) for link in workflow["links"]}
    graph = {}
    for node in nodes.values():
        if node["mode"] == BYPASSED:
            continue
        widgets = zip(widgets_of(object_info[node["type"]]), node["widgets_values"], strict=True)
        inputs = {name: value for name, value in widgets if "." not in name}
        for slot in node["inputs"]:
            origin, origin_slot = _through_bypassed(nodes, links, *links[slot["link"]])
            inputs[slot["name"]] = [str(origin), origin_slot]
        graph[str(node["id"])] = {"class_type": node["type"], "inputs": inputs}
    return graph


def _through_bypassed(
    nodes: dict[int, dict], links: dict[int, tuple[int, int]], origin: int, slot: int
) -> tuple[int, int]:
    """Where a link comes from, seen through bypassed nodes: those hand on their first input of the output's type."""
    while nodes[origin]["mode"] == BYPASSED:
        kind = nodes[origin]["outputs"][slot]["type"]
        origin, slot = links[next(entry["link"] for entry in nodes[origin]["inputs"] if entry["type"] == kind)]
    return origin, slot


def set_inputs(graph: dict[str, dict], **values: object) -> dict[str, dict]:
    """The graph with each named widget set wherever a node has it; KeyError when none has."""
    for name, value in values.items():
        having = [node["inputs"] for node in graph.values() if name in node["inputs"]]
        if not having:
            raise KeyError(name)
        for inputs in having:
            inputs[name] = value
    return graph
