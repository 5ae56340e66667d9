// Where the front end meets the rating dialog: command, menu, key, sidebar tab, and a button on the node that draws.

import { app } from "../../../scripts/app.js";
import { openRating } from "./dialog.js";
import { endSidebar, renderSidebar } from "./sidebar.js";
import { loadTexts } from "./texts.js";
import { sendLeftovers } from "./votes.js";

const COMMAND = "CHATS.Rate", NODE = "CHATSSaveCandidates";

app.registerExtension({
    name: "CHATS.Rating",
    commands: [{ id: COMMAND, label: "Rate pictures", icon: "pi pi-thumbs-up", function: () => openRating() }],
    menuCommands: [{ path: ["CHATS"], commands: [COMMAND] }],
    keybindings: [{ commandId: COMMAND, combo: { key: "t" } }],

    async setup() {
        const style = document.createElement("link");
        style.rel = "stylesheet";
        style.href = new URL("style.css", import.meta.url).href;
        document.head.append(style);
        sendLeftovers();
        const t = await loadTexts();
        app.extensionManager.registerSidebarTab({
            id: "chats-rate",
            icon: "pi pi-thumbs-up",
            title: t("tab"),
            tooltip: t("title"),
            type: "custom",
            render: renderSidebar,
            destroy: endSidebar,
        });
    },

    /** @param {any} node */
    async nodeCreated(node) {
        if (node.comfyClass !== NODE) return;
        const open = () => openRating(node.widgets.find((widget) => widget.name === "dataset")?.value || undefined);
        // It is neither a value of the graph nor one of its file.
        const button = node.addWidget("button", "rate", null, open, { serialize: false });
        button.serialize = false;
        button.label = (await loadTexts())("title");
        node.setDirtyCanvas(true, true);
    },
});
