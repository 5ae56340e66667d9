// The rating dialog: shows a session and turns keys, buttons and fingers into presses.

import { captureKeys } from "./keys.js";
import { datasets, onNodeRun, saidBy, writeGuideline } from "./server.js";
import { Session } from "./session.js";
import { onTaps } from "./taps.js";
import { loadTexts } from "./texts.js";
import { buildDialog, fitHeight, make } from "./view.js";
import { Zoom } from "./zoom.js";

const CHOICES = {
    ArrowLeft: "left", ArrowRight: "right", ArrowUp: "tie", ArrowDown: "skip", Backspace: "back",
};
const DIRECTIONS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
const LOOK_AGAIN_MILLISECONDS = 4000, FLASH_MILLISECONDS = 180;
// What happens in the dialog is no event of the canvas or of the page below.
const OWN_EVENTS = ["wheel", "contextmenu", "dblclick", "pointerdown", "pointerup", "mousedown", "dragenter",
    "dragover", "drop"];

/** @type {RatingDialog | null} */
let open = null;
let asked = 0;

/**
 * Opens the dialog, or shows another data set in the one that is open.
 * @param {string} [dataset] the newest where none is named
 */
export async function openRating(dataset) {
    const number = ++asked;
    const t = await loadTexts();
    if (number !== asked) return;
    open ??= new RatingDialog(t);
    await open.choose(dataset);
}

class RatingDialog {
    /** @param {import("./texts.js").Texts} t */
    constructor(t) {
        this.t = t;
        /** @type {Session | null} */
        this.session = null;
        /** @type {string | undefined} a data set that is not there yet */
        this.wanted = undefined;
        this.guidelineKept = "";
        /** @type {import("./server.js").Said | null} */
        this.guidelineError = this.listError = null;
        this.view = buildDialog(t);
        this.zoom = new Zoom(this.view.panes, (scale) =>
            this.view.buttons.zoom.setAttribute("aria-pressed", String(scale > 1)));
        this.listen();
        document.body.append(this.view.dialog);
        this.view.dialog.showModal();
        this.view.stage.focus();
    }

    listen() {
        const { dialog, close, select, guideline, stage, buttons } = this.view;
        this.endKeys = captureKeys((event) => this.key(event));
        this.endRuns = onNodeRun(() => this.lookAgain());
        this.timer = setInterval(() => this.lookAgain(), LOOK_AGAIN_MILLISECONDS);
        for (const name of OWN_EVENTS) dialog.addEventListener(name, (event) => event.stopPropagation());
        for (const name of ["dragover", "drop"]) dialog.addEventListener(name, (event) => event.preventDefault());
        dialog.addEventListener("close", () => this.closed());
        close.addEventListener("click", () => dialog.close());
        select.addEventListener("change", () => this.start(select.value));
        guideline.addEventListener("input", () => fitHeight(guideline));
        // A larger window has larger letters.
        new ResizeObserver(() => fitHeight(guideline)).observe(dialog);
        guideline.addEventListener("blur", () => this.keepGuideline());
        for (const [name, button] of Object.entries(buttons))
            button.addEventListener("click", () => (name === "zoom" ? this.zoom.toggle() : this.session?.press(name)));
        // Enlarged pictures are looked at and moved.
        onTaps(this.view.panes, (index) => this.zoom.scale > 1 || this.session?.press(index ? "right" : "left"));
        // After a click the keys are the pictures' again: Space would press the button once more.
        dialog.addEventListener("click", (event) => {
            if (event.detail > 0 && event.target.closest("button")) stage.focus({ preventScroll: true });
        });
    }

    closed() {
        this.endKeys();
        this.endRuns();
        clearInterval(this.timer);
        this.keepGuideline();
        this.session?.close();
        this.view.dialog.remove();
        open = null;
    }

    /** @param {string} [dataset] */
    async choose(dataset) {
        this.wanted = dataset;
        await this.lookAgain();
    }

    /** Asks for pairs, and for the data sets: more may have come, or the one that is to be rated. */
    async lookAgain() {
        this.session?.fill();
        let sets;
        try {
            sets = await datasets();
            this.listError = null;
        } catch (error) {
            this.listError = saidBy(error);
            return this.show();
        }
        const names = sets.map((set) => set.name);
        this.list(names);
        if (this.session && this.wanted === undefined) return;
        const name = this.wanted ?? names[0];
        if (names.includes(name)) {
            if (this.session?.dataset !== name) this.start(name);
        } else {
            this.session?.close();
            this.session = null;
        }
        if (!this.session) this.view.select.value = "";
        this.show();
    }

    /** Brings the list to these names, and leaves it alone where it has them: it may be open. @param {string[]} names */
    list(names) {
        const { select } = this.view, chosen = this.session?.dataset;
        // What is being rated stays in it, though its folder be moved away for now.
        const wanted = chosen && !names.includes(chosen) ? [...names, chosen] : names;
        const listed = new Set(Array.from(select.options, (option) => option.value));
        if (listed.size === wanted.length && wanted.every((name) => listed.has(name))) return;
        select.replaceChildren(...wanted.map((name) => make("option", { value: name }, name)));
        if (chosen) select.value = chosen;
    }

    /** @param {string} name */
    start(name) {
        this.keepGuideline();
        this.session?.close();
        this.wanted = undefined;
        this.view.select.value = name;
        this.view.guideline.value = this.guidelineKept = "";
        this.session = new Session(name);
        this.session.addEventListener("pair", () => this.showPair());
        this.session.addEventListener("changed", () => this.show());
        this.session.addEventListener("voted", (event) => this.flash(event.detail));
        this.showPair();
    }

    /** @param {KeyboardEvent} event */
    key(event) {
        const { dialog, guideline, select, stage } = this.view;
        const target = /** @type {HTMLElement} */ (event.target);
        if (event.key === "Escape") {
            event.preventDefault();
            if (target !== guideline) return dialog.close();
            guideline.value = this.guidelineKept;
            return stage.focus();
        }
        if (target === guideline && event.key === "Enter") {
            event.preventDefault();
            return stage.focus();
        }
        // An input method's keys, those of the field or button in focus, and the browser's own.
        if (event.isComposing || target === guideline || target === select) return;
        if (event.ctrlKey || event.metaKey || event.altKey) {
            // Neither is all of the page to be marked nor the page to be saved.
            if (["a", "s"].includes(event.key.toLowerCase())) event.preventDefault();
            return;
        }
        if (target.closest?.("button") && (event.key === "Enter" || event.key === " ")) {
            if (event.repeat) event.preventDefault();
            return;
        }
        if (this.zoomKey(event)) return event.preventDefault();
        if (!(event.key in CHOICES)) return;
        event.preventDefault();
        if (!event.repeat) this.session?.press(CHOICES[event.key]);
    }

    /** @param {KeyboardEvent} event @returns {boolean} whether it was one of the zoom's */
    zoomKey({ key, shiftKey, repeat }) {
        if (shiftKey && key in DIRECTIONS) this.zoom.move(...DIRECTIONS[key]);
        else if (key === " ") repeat || this.zoom.toggle();
        else if (key === "+" || key === "=") this.zoom.by(1);
        else if (key === "-") this.zoom.by(-1);
        else if (key === "0") this.zoom.reset();
        else return false;
        return true;
    }

    /** The choice that was made, on its button for a moment. @param {string} choice */
    flash(choice) {
        const button = this.view.buttons[choice];
        button.classList.add("made");
        setTimeout(() => button.classList.remove("made"), FLASH_MILLISECONDS);
    }

    /** Puts the current pair's pictures and prompt in place. */
    showPair() {
        const held = this.session?.current ?? null;
        for (const [index, pane] of this.view.panes.entries()) {
            const side = index ? "right" : "left", picture = held?.pictures[index];
            if (picture) {
                picture.dataset.side = side;
                picture.alt = this.t(`${side}Picture`);
            }
            pane.replaceChildren(...(picture ? [picture] : []));
        }
        this.view.prompt.textContent = held?.pair.prompt ?? "";
        this.view.prompt.scrollTop = 0;
        this.zoom.reset();
        this.show();
    }

    /** Counts, messages and what stands where pictures are not. */
    show() {
        const { t, session, view } = this, progress = session?.progress;
        view.bar.max = progress ? Math.max(progress.rated + progress.waiting, 1) : 1;
        view.bar.value = progress?.rated ?? 0;
        setText(view.counts, progress ? this.countsText(progress) : "");
        // Not over what is being written, or could not be saved.
        if (session && document.activeElement !== view.guideline && view.guideline.value === this.guidelineKept)
            view.guideline.value = this.guidelineKept = session.guideline;
        view.guideline.disabled = !session;
        fitHeight(view.guideline);
        for (const choice of ["left", "right", "tie", "skip"]) view.buttons[choice].disabled = !session?.current;
        const alerts = this.alerts();
        setText(view.alerts, alerts.map(ended).join(" "));
        view.hint.hidden = alerts.length > 0;
        this.showNotice();
    }

    /** @param {import("./server.js").Progress} progress */
    countsText({ rated, waiting, pairs, agreement: [agreed, of] }) {
        const counts = this.t("counts", { rated, waiting, pairs });
        return of ? `${counts} · ${this.t("agreement", { agreed, of })}` : counts;
    }

    /** @returns {string[]} sentences */
    alerts() {
        const { t, session } = this;
        if (!session) return this.listError ? [t("noAnswer", { error: this.listError })] : [];
        const { outbox } = session, found = [];
        if (outbox.error) found.push(t("unsent", { count: outbox.waiting.length, error: outbox.error }));
        if (outbox.unkept && outbox.waiting.length) found.push(t("unkept"));
        if (session.error && session.error.text !== outbox.error?.text) found.push(t("noAnswer", { error: session.error }));
        if (session.message) found.push(t(...session.message));
        if (this.guidelineError) found.push(t("guidelineUnsent", { error: this.guidelineError }));
        return [...found, ...session.notes.map(t.said).map((note) => note[0].toUpperCase() + note.slice(1))];
    }

    showNotice() {
        const { t, session, view } = this;
        let text = "";
        if (!session) text = this.wanted === undefined ? t("noDataSets") : t("noDataSet", { name: this.wanted });
        else if (session.nothingLeft) text = this.nothingLeftText(session);
        else if (session.current?.broken) text = t("pictureMissing");
        else if (!session.current?.pictures.every((picture) => picture.complete)) text = t("loading");
        if (view.notice.dataset.text === text) return;
        view.notice.dataset.text = text;
        view.notice.hidden = !text;
        view.notice.replaceChildren(make("p", { role: "status" }, text));
        if (!session?.current?.broken) return;
        const again = make("button", { type: "button" }, t("retry"));
        again.addEventListener("click", () => this.session?.retry());
        view.notice.append(again);
    }

    /** What is missing, where nothing is left to rate. @param {Session} session */
    nothingLeftText({ dataset, progress, alone }) {
        const { t } = this;
        if (progress.rated) return alone ? `${t("nothingLeft")} ${t("alone", { alone })}` : t("nothingLeft");
        return alone ? `${t("nonePaired")} ${t("alone", { alone })}` : t("noDataSet", { name: dataset });
    }

    /** Sends the guideline where it was changed; it stays in its field until the server has it. */
    async keepGuideline() {
        const { session, view } = this, text = view.guideline.value.replace(/\s+/g, " ").trim();
        if (!session || text === this.guidelineKept) return;
        try {
            const kept = await writeGuideline(session.dataset, text);
            session.guideline = kept;
            if (session === this.session) this.guidelineKept = view.guideline.value = kept;
            this.guidelineError = null;
        } catch (error) {
            this.guidelineError = saidBy(error);
        }
        this.show();
    }
}

/** With an end, whoever wrote it. @param {string} sentence */
const ended = (sentence) => (/[.!?。！？…]$/.test(sentence) ? sentence : `${sentence}.`);

/** Without touching what is right already: a live region speaks whenever it is written to. */
function setText(element, text) {
    if (element.textContent !== text) element.textContent = text;
}
