"""Damaged workflows: the shipped ones with odd values and links of this pack's nodes, sent to a real server with mini
models."""

from __future__ import annotations

import json
import random
import time
from pathlib import Path

from . import cases

ROOT = Path(__file__).resolve().parents[2]
SHIPPED = (
    "chats_sd15_ksampler",
    "chats_sdxl_ksampler",
    "chats_sdxl_guider",
    "chats_sdxl_lora_pair",
    "chats_sd15_extracted_lora",
)
ODD_VALUES = [
    *(
        None,
        True,
        "",
        "none",
        "x",
        -1,
        0,
        1,
        0.5,
        1.5,
        1e300,
        10**30,
        "1",
        "nan",
        float("nan"),
        float("inf"),
        [],
        {},
        [[]],
        ["4"],
        ["4", 0, 1],
    ),
    *(
        "x" * 5000,
        "\x00",
        "\x1b[31m",
        "../../x.safetensors",
        "/etc/passwd",
        "truncated.safetensors",
        "pickled.ckpt",
        "proxy",
        "exact",
        100.0,
        -2.0,
    ),
]


class Workflows:
    """Graphs of `POST /prompt`."""

    name = "workflows"

    def __init__(self, server):
        import workflow_graph

        self.server = server
        info = server.json("/object_info")
        self.graphs = []
        for name in SHIPPED:
            # The server has a pair of SD1.5; graphs do not depend on the family.
            text = (
                (ROOT / "workflows" / f"{name}.json").read_text(encoding="utf-8").replace("chats_sdxl_", "chats_sd15_")
            )
            workflow = json.loads(text)
            graph = workflow_graph.to_api(workflow, info)
            # One step of a tiny picture.
            workflow_graph.set_inputs(graph, steps=1, width=64, height=64)
            if said := self._run(graph):
                raise AssertionError(f"{name}, undamaged: {said}")
            self.graphs.append(graph)

    def make(self, rng: random.Random, folder: Path) -> cases.Case:
        graph = json.loads(json.dumps(rng.choice(self.graphs)))
        mutation = "nothing"
        for _ in range(rng.choice([1, 1, 2, 3])):
            mutation = self._damage(rng, graph)
        return cases.Case(mutation, ROOT / "workflows", {"server": lambda: self._run(graph)})

    def _damage(self, rng: random.Random, graph: dict) -> str:
        """Changes one node of the pack in place; returns what was done."""
        own = [node for node in graph.values() if node["class_type"].startswith("CHATS")]
        node = rng.choice(own or list(graph.values()))
        name = rng.choice(list(node["inputs"]) or ["cfg"])
        change = rng.randrange(5)
        if change == 0:
            node["inputs"][name] = [rng.choice([*graph, "999", "", None]), rng.choice([0, 0, 1, 2, -1, 99, "0", None])]
            return "another link"
        if change == 1:
            node["inputs"].pop(name, None)
            return "an input less"
        if change == 2:
            node["inputs"][rng.choice(["no_such", "alpha", "preferred", ""])] = rng.choice(ODD_VALUES)
            return "an input more"
        if change == 3 and rng.random() < 0.3:
            node["class_type"] = rng.choice([other["class_type"] for other in graph.values()] + ["CHATSNoSuchNode", ""])
            return "another node"
        widgets = [key for key, value in node["inputs"].items() if not isinstance(value, list)]
        node["inputs"][rng.choice(widgets or [name])] = rng.choice(ODD_VALUES)
        return "odd value"

    def _run(self, graph: dict) -> str | None:
        """None for a run that ended well; what ComfyUI or a node says otherwise."""
        answer = self.server.queue(graph)
        if "prompt_id" not in answer:
            return self._refusal(answer)
        while not (entry := self.server.json(f"/history/{answer['prompt_id']}").get(answer["prompt_id"])):
            assert self.server.process.poll() is None, "the server ended"
            time.sleep(0.02)
        if entry["status"]["status_str"] == "success":
            return None
        (message,) = (said for kind, said in entry["status"]["messages"] if kind == "execution_error")
        if not message["node_type"].startswith("CHATS"):
            # A node of ComfyUI, of what it was given: not ours to word.
            return f"`{message['node_type']}` ended the run; see its message"
        if "unexpected keyword argument" in message["exception_message"]:
            # ComfyUI hands a link in an input that the node does not have to every node, and this is Python's answer.
            return f"`{message['node_type']}` has no such input; leave it out"
        # Which sentences of this pack's own are, is held to the rule as the others are.
        assert message["exception_type"].endswith(("PairError", "ValueError")), (
            f"{message['node_type']}: {message['exception_type']}: {message['exception_message'][:200]}"
        )
        return message["exception_message"].strip()

    def _refusal(self, answer: dict) -> str:
        """What is said before anything runs; the sentences of this pack's own checks are held to the rule, ComfyUI's
        words are its own."""
        own = [
            error["details"].partition(" - ")[2]
            for node in answer.get("node_errors", {}).values()
            for error in node["errors"]
            if error["type"] == "custom_validation_failed"
        ]
        return "\n".join(own) or f"ComfyUI refuses the graph; `{json.dumps(answer)[:500]}`"
