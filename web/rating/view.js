// What the rating dialog is made of: elements with their labels, no behaviour.

/** @typedef {import("./texts.js").Texts} Texts */

/** Choices with the keys that make them; the order is that of the buttons. */
const BUTTONS = [
    ["back", "Backspace", "⌫"],
    ["left", "ArrowLeft", "←"],
    ["tie", "ArrowUp", "↑"],
    ["skip", "ArrowDown", "↓"],
    ["right", "ArrowRight", "→"],
    ["zoom", "Space", "␣"],
];
const LONGEST_GUIDELINE = 500;

/**
 * @param {string} tag
 * @param {Record<string, string>} [attributes]
 * @param {...(Node | string)} children texts stay texts, whatever is in them
 * @returns {any}
 */
export function make(tag, attributes = {}, ...children) {
    const element = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
    element.append(...children);
    return element;
}

/** @param {Texts} t */
export function buildDialog(t) {
    const closes = t("close");
    const close = make("button", { type: "button", class: "close", "aria-label": closes, title: closes }, "✕");
    const select = make("select", { "aria-label": t("dataSet") });
    const bar = make("progress", { max: "1", value: "0", "aria-label": t("progressLabel") });
    const counts = make("p", { class: "counts", role: "status" });
    const guideline = make("textarea", {
        rows: "1", maxlength: String(LONGEST_GUIDELINE), placeholder: t("guidelineHint"), spellcheck: "false",
        id: "chats-rate-guideline",
    });
    const prompt = make("div", {
        class: "prompt", dir: "auto", tabindex: "0", role: "region", "aria-label": t("prompt"),
    });
    const panes = ["left", "right"].map((side) => make("figure", { class: "pane", "data-pane": side }));
    const notice = make("div", { class: "notice" });
    const stage = make("div", {
        class: "stage", tabindex: "0", role: "application", "aria-label": t("stage"),
    }, ...panes, notice);
    const buttons = Object.fromEntries(BUTTONS.map(([name, key, sign]) => [name, make("button", {
        type: "button", class: name, "aria-keyshortcuts": key,
    }, make("kbd", { "aria-hidden": "true" }, sign), make("span", {}, t(name)))]));
    const hint = make("p", { class: "hint" }, matchMedia("(pointer: coarse)").matches ? t("touchHint") : t("hint"));
    const alerts = make("p", { class: "alerts", role: "alert" });
    const dialog = make("dialog", { class: "chats-rate", tabindex: "-1", "aria-label": t("title") },
        make("header", {}, make("h2", {}, t("title")), select, bar, counts, close),
        make("div", { class: "about" },
            make("label", { for: "chats-rate-guideline" }, t("guideline")), guideline,
            make("span", { class: "label", "aria-hidden": "true" }, t("prompt")), prompt),
        stage,
        make("div", { class: "choices" }, ...Object.values(buttons)),
        make("footer", {}, hint, alerts));
    return { dialog, close, select, bar, counts, guideline, prompt, panes, notice, stage, buttons, hint, alerts };
}

/** As many lines as the text has; the style says how many at most. @param {HTMLTextAreaElement} field */
export function fitHeight(field) {
    field.style.height = "auto";
    field.style.height = `${field.scrollHeight + field.offsetHeight - field.clientHeight}px`;
}
