"""One page of the front end: opens workflows, reads the graph that it made of them, queues, and takes pictures."""

from __future__ import annotations

from pathlib import Path

from serving import PACK, Server

START_MILLISECONDS, RUN_MILLISECONDS = 120_000, 120_000
MOST_SCROLLS = 100
WIDTH, HEIGHT = 1600, 1000

# The graph as the front end holds it. Node ids are numbers or strings, by version.
READ_GRAPH = """() => app.graph.nodes.map(node => ({
    id: Number(node.id),
    type: node.type,
    registered: node.type in LiteGraph.registered_node_types,
    has_errors: !!node.has_errors,
    widgets: (node.widgets ?? []).map(widget => [widget.name, widget.value]),
    inputs: (node.inputs ?? []).filter(slot => slot.link != null).map(slot => {
        const link = app.graph.links.get ? app.graph.links.get(slot.link) : app.graph.links[slot.link];
        return [slot.name, Number(link.origin_id), link.origin_slot];
    }),
    bounds: Array.from(node.getBounding()),
}))"""
# Nodes 2.0 draws each node as an element on a pane whose corner is the graph's origin; in units of the graph. The
# pane's own scale counts: it can lag behind the canvas's.
READ_ELEMENTS = """() => Array.from(document.querySelectorAll('[data-node-id]')).map(element => {
    const pane = element.closest('[data-testid=transform-pane]').getBoundingClientRect();
    const {x, y, width, height} = element.getBoundingClientRect(), scale = width / element.offsetWidth;
    const bounds = [(x - pane.left) / scale, (y - pane.top) / scale, width / scale, height / scale];
    return {id: Number(element.dataset.nodeId), bounds};
})"""
# Begins; the end is awaited in END.
QUEUE = """count => {
    const names = ['execution_success', 'execution_error', 'execution_interrupted'];
    window.chatsRun = new Promise(resolve => {
        const listen = event => {
            if (event.type === 'execution_success' && --count) return;
            for (const name of names) app.api.removeEventListener(name, listen);
            resolve([event.type, event.detail]);
        };
        for (const name of names) app.api.addEventListener(name, listen);
    });
    return app.queuePrompt(0, count);
}"""
END = """async () => {
    const [name, detail] = await window.chatsRun;
    return {name, message: detail.exception_message ?? null, node: detail.node_type ?? null};
}"""
CARDS = "[data-testid^=template-workflow-]"
SUCCESS = {"name": "execution_success", "message": None, "node": None}


class FrontEnd:
    """The page."""

    def __init__(
        self, browser, server: Server, nodes_2: bool, locale: str = "en", context=None, user: str | None = None
    ):
        """A page of its own, or one that shares the storage of ``context``; of a ``user`` (id) that has been chosen."""
        server.post("/api/settings/Comfy.VueNodes.Enabled", nodes_2, user)
        server.post("/api/settings/Comfy.Locale", locale, user)
        self.server, self.nodes_2 = server, nodes_2
        self.own = None if context else browser.new_context(viewport={"width": WIDTH, "height": HEIGHT})
        self.page = (context or self.own).new_page()
        if user:
            self.page.add_init_script(f"localStorage['Comfy.userId'] = localStorage['Comfy.userName'] = '{user}'")
        self.page.goto(f"http://127.0.0.1:{server.port}/", timeout=START_MILLISECONDS)
        self.wait_until_ready()

    def wait_until_ready(self) -> None:
        ready = "() => window.app?.extensionManager && Object.keys(LiteGraph.registered_node_types).length > 100"
        self.page.wait_for_function(ready, timeout=START_MILLISECONDS)

    def render(self, nodes_2: bool) -> None:
        """How graphs that are opened from now on are drawn; to load another page takes seconds."""
        self.page.evaluate("enabled => app.extensionManager.setting.set('Comfy.VueNodes.Enabled', enabled)", nodes_2)
        self.nodes_2 = nodes_2

    def open_template(self, name: str) -> None:
        """What a click on a template does: its file by the templates' address, handed to the front end."""
        self.page.evaluate(
            """async ([pack, name]) => {
                const answer = await app.api.fetchApi(`/workflow_templates/${pack}/${name}.json`);
                await app.loadGraphData(await answer.json(), true, true, name);
            }""",
            [PACK, name],
        )
        self.settle()

    def open_templates(self) -> None:
        """The Templates dialog, where it shows the pack's."""
        self.page.evaluate("() => app.extensionManager.command.execute('Comfy.BrowseTemplates')")
        self.page.get_by_text(PACK, exact=True).last.click()

    def click_template(self, name: str) -> None:
        """Scrolls to it: cards come as they are scrolled to."""
        cards, card = self.page.locator(CARDS), self.page.get_by_test_id(f"template-workflow-{name}")
        for _ in range(MOST_SCROLLS):
            if card.count():
                break
            cards.last.scroll_into_view_if_needed()
            self.page.wait_for_timeout(100)
        card.click()
        card.wait_for(state="detached")
        opened = "name => app.extensionManager.workflow.activeWorkflow.filename.startsWith(name)"
        self.page.wait_for_function(opened, arg=name)
        self.settle()

    def settle(self) -> None:
        """Fits the graph into the window and lets it be drawn."""
        self.page.evaluate("() => app.extensionManager.command.execute('Comfy.Canvas.FitView')")
        self.page.wait_for_timeout(700)

    def nodes(self) -> dict[int, dict]:
        return {node["id"]: node for node in self.page.evaluate(READ_GRAPH)}

    def rectangles(self) -> dict[int, list[float]]:
        """Left, top, width, height of each node as drawn, with its title, in units of the graph."""
        if self.nodes_2:
            return {element["id"]: element["bounds"] for element in self.page.evaluate(READ_ELEMENTS)}
        return {number: node["bounds"] for number, node in self.nodes().items()}

    def groups(self) -> dict[str, list[float]]:
        """Left, top, width, height of each group's frame by its title, in units of the graph."""
        return dict(
            self.page.evaluate("() => app.graph.groups.map(group => [group.title, [...group.pos, ...group.size]])")
        )

    def graph_area(self, margin: int) -> dict[str, float]:
        """Where nodes and groups are in the window, in pixels, with a margin: left, top, width, height."""
        boxes = self.page.evaluate(
            """() => {
                const nodes = Array.from(document.querySelectorAll('[data-node-id]')).map(element => {
                    const {left, top, right, bottom} = element.getBoundingClientRect();
                    return [left, top, right, bottom];
                });
                const {scale, offset} = app.canvas.ds, canvas = app.canvas.canvas.getBoundingClientRect();
                const groups = app.graph.groups.map(({pos: [x, y], size: [width, height]}) => [
                    canvas.left + (x + offset[0]) * scale,
                    canvas.top + (y + offset[1]) * scale,
                    canvas.left + (x + width + offset[0]) * scale,
                    canvas.top + (y + height + offset[1]) * scale,
                ]);
                return [...nodes, ...groups];
            }"""
        )
        left, top = (min(box[side] for box in boxes) - margin for side in (0, 1))
        right, bottom = (max(box[side] for box in boxes) + margin for side in (2, 3))
        return {"x": left, "y": top, "width": right - left, "height": bottom - top}

    def api_graph(self) -> dict[str, dict]:
        """What the front end would send to the server."""
        return self.page.evaluate("async () => (await app.graphToPrompt()).output")

    def inputs(self, kind: str) -> dict[str, object]:
        """What is sent as the inputs of the node of a type."""
        (inputs,) = (node["inputs"] for node in self.api_graph().values() if node["class_type"] == kind)
        return inputs

    def set_widgets(self, kind: str | None = None, **values: object) -> None:
        """Sets each named widget wherever a node (of a type) has it."""
        self.page.evaluate(
            """([kind, values]) => {
                for (const node of app.graph.nodes.filter(node => !kind || node.type === kind))
                    for (const widget of node.widgets ?? [])
                        if (widget.name in values) widget.value = values[widget.name];
            }""",
            [kind, values],
        )

    def replace_node(self, old: str, new: str, **values: object) -> None:
        """Puts a node of another type, with these widgets, in the place of the one of a type; its first output goes
        where that one's went."""
        self.page.evaluate(
            """([oldType, newType, values]) => {
                const old = app.graph.nodes.find(node => node.type === oldType), node = LiteGraph.createNode(newType);
                node.pos = [...old.pos];
                app.graph.add(node);
                for (const widget of node.widgets) if (widget.name in values) widget.value = values[widget.name];
                for (const id of [...old.outputs[0].links]) {
                    const link = app.graph.links.get(id);
                    node.connect(0, app.graph.getNodeById(link.target_id), link.target_slot);
                }
                app.graph.remove(old);
            }""",
            [old, new, values],
        )

    def run(self, count: int = 1) -> dict:
        """Queues the graph so often and waits for the end."""
        self.queue(count)
        return self.end()

    def queue(self, count: int = 1) -> None:
        self.page.evaluate(QUEUE, count)

    def end(self) -> dict:
        """How what was queued ended: all of it, or the first that did not succeed."""
        self.page.set_default_timeout(RUN_MILLISECONDS)
        return self.page.evaluate(END)

    def screenshot(self, path: Path, **options: object) -> None:
        self.page.screenshot(path=path, **options)

    def close(self) -> None:
        (self.own or self.page).close()
