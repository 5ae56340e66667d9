// The sidebar's list of data sets, each with its counts and a button that opens the dialog.

import { openRating } from "./dialog.js";
import { datasets, onNodeRun, saidBy } from "./server.js";
import { loadTexts } from "./texts.js";
import { make } from "./view.js";

const LOOK_AGAIN_MILLISECONDS = 10000;

/** @type {() => void} */
let end = () => {};

/** @param {HTMLElement} element the tab's */
export async function renderSidebar(element) {
    endSidebar();
    const t = await loadTexts();
    const list = make("ul"), says = make("p", { role: "status" });
    element.replaceChildren(make("div", { class: "chats-rate-list" }, make("h3", {}, t("title")), says, list));
    const refresh = async () => {
        try {
            const sets = await datasets();
            says.textContent = sets.length ? "" : t("noDataSets");
            list.replaceChildren(...sets.map((set) => row(set, t)));
        } catch (error) {
            says.textContent = t("noAnswer", { error: saidBy(error) });
        }
    };
    const timer = setInterval(refresh, LOOK_AGAIN_MILLISECONDS), endRuns = onNodeRun(refresh);
    end = () => {
        clearInterval(timer);
        endRuns();
    };
    await refresh();
}

export function endSidebar() {
    end();
    end = () => {};
}

/** @param {import("./server.js").Counts} set @param {import("./texts.js").Texts} t */
function row({ name, candidates, prompts, rated, waiting }, t) {
    const button = make("button", { type: "button" }, make("strong", {}, name),
        make("span", {}, t("setCounts", { candidates, prompts })),
        make("span", {}, t("setRated", { rated, waiting })));
    button.addEventListener("click", () => openRating(name));
    return make("li", {}, button);
}
