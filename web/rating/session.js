// One sitting of rating a data set: which pair is on the screen, which follow, and presses in the order they came.

import { newName, nextPair, pictureAddress, rate, saidBy } from "./server.js";
import { outboxOf } from "./votes.js";

/** @typedef {import("./server.js").Pair} Pair */
/** @typedef {import("./server.js").Choice} Choice */
/** @typedef {{choice: Choice | "back", time: number}} Press */

// As many pairs as an address can name, of those the server takes.
const HELD_PAIRS = 3, MOST_AVOIDED = 150;

/** This page's name: the server gives a pair to one page at a time. */
const TAB = newName();

/** A pair with its pictures, loaded and decoded before they are shown. */
class HeldPair {
    /** @param {string} dataset @param {Pair} pair */
    constructor(dataset, pair) {
        this.dataset = dataset;
        this.pair = pair;
        /** @type {number | null} when it was on the screen, in ms of the page's clock */
        this.seenAt = null;
        this.load();
    }

    load() {
        this.broken = false;
        this.pictures = [this.pair.left, this.pair.right].map((id) => {
            const picture = new Image();
            picture.src = pictureAddress(this.dataset, id);
            picture.dataset.id = id;
            picture.draggable = false;
            return picture;
        });
        /** @type {Promise<void>} */
        this.loaded = Promise.all(this.pictures.map((picture) => picture.decode())).then(
            () => {},
            () => void (this.broken = true),
        );
    }
}

/**
 * Events: `pair` (another one is on the screen), `changed` (counts and messages), `voted` (detail: the choice).
 * `message` is a key of the texts with its values, for what a press could not do.
 */
export class Session extends EventTarget {
    /** @param {string} dataset */
    constructor(dataset) {
        super();
        this.dataset = dataset;
        this.outbox = outboxOf(dataset);
        /** @type {HeldPair[]} the first is on the screen */
        this.held = [];
        /** @type {{rating: string, pair: Pair}[]} this page's votes that Backspace takes back, newest last */
        this.history = this.leftovers();
        /** @type {Press[]} */
        this.presses = [];
        /** @type {import("./server.js").Progress | null} */
        this.progress = null;
        // How many prompts have one picture only.
        this.alone = 0;
        this.guideline = "";
        /** @type {import("./server.js").Said[]} */
        this.notes = [];
        /** @type {import("./server.js").Said | null} why the server gives no pair */
        this.error = null;
        /** @type {[string, import("./texts.js").Values] | null} */
        this.message = null;
        // Whether the server's last word was that nothing is left.
        this.exhausted = false;
        this.filling = this.goingBack = this.closed = false;
        this.onTaken = (event) => this.took(event.detail);
        this.onRefused = (event) => this.say("refused", { error: event.detail });
        this.onChanged = () => this.tell("changed");
        this.outbox.addEventListener("taken", this.onTaken);
        this.outbox.addEventListener("refused", this.onRefused);
        this.outbox.addEventListener("changed", this.onChanged);
        this.outbox.send();
        this.fill();
    }

    close() {
        this.closed = true;
        this.outbox.removeEventListener("taken", this.onTaken);
        this.outbox.removeEventListener("refused", this.onRefused);
        this.outbox.removeEventListener("changed", this.onChanged);
    }

    /** The pair on the screen. */
    get current() {
        return this.held[0] ?? null;
    }

    get nothingLeft() {
        return !this.held.length && this.exhausted;
    }

    /** @param {Choice | "back"} choice */
    press(choice) {
        this.message = null;
        this.presses.push({ choice, time: performance.now() });
        this.work();
    }

    /** Does what was pressed, each press on the pair whose turn it is and not before that was seen. */
    work() {
        while (this.presses.length && !this.goingBack && !this.closed) {
            if (this.presses[0].choice === "back") {
                this.presses.shift();
                this.goBack();
            } else if (this.nothingLeft || (this.error && !this.current)) {
                // Meant for no pair: it must not meet one that comes later.
                this.presses.shift();
            } else if (this.current?.seenAt != null) {
                this.vote(this.current, this.presses.shift());
            } else break;
        }
        this.tell("changed");
    }

    /** @param {HeldPair} held @param {Press} press */
    vote(held, { choice, time }) {
        if (held.broken && choice !== "skip") return this.say("pictureMissing");
        const { left, right, repeat } = held.pair, rating = newName();
        // No time is known of what was pressed before the pictures were there.
        const seconds = time < held.seenAt || held.broken ? null : Math.round(time - held.seenAt) / 1000;
        this.outbox.add({ rating, left, right, choice: /** @type {Choice} */ (choice), seconds, repeat }, held.pair);
        this.history.push({ rating, pair: held.pair });
        this.held.shift();
        this.tell("voted", choice);
        this.show();
        this.fill();
    }

    /** Takes the last vote back and shows its pair again; after a reload the server knows which it was. */
    async goBack() {
        const last = this.history.pop();
        if (last) {
            if (!this.outbox.withdraw(last.rating)) this.outbox.add({ undo: last.rating }, null);
            this.putBack(last.pair);
            return;
        }
        this.goingBack = true;
        try {
            await this.outbox.send();
            if (this.outbox.waiting.length) return this.say("backLater");
            const next = await nextPair(this.dataset, TAB, this.avoided().slice(0, MOST_AVOIDED));
            this.take(next);
            if (next.last === null) return this.say("nothingBack");
            const undone = await rate(this.dataset, { undo: next.last });
            this.took(undone);
            this.putBack(undone.pair);
        } catch (error) {
            this.say("backFailed", { error: saidBy(error) });
        } finally {
            this.goingBack = false;
            this.work();
        }
    }

    /** @param {Pair} pair */
    putBack(pair) {
        if (this.current) this.current.seenAt = null;
        this.held = [new HeldPair(this.dataset, pair), ...this.held.filter((held) => !same(held.pair, pair))];
        this.show();
    }

    /** Puts the current pair on the screen, and notes when its pictures are there to be seen. */
    async show() {
        const held = this.current;
        this.tell("pair");
        if (!held) return;
        await held.loaded;
        this.tell("changed");
        await painted();
        if (this.closed || this.current !== held) return;
        held.seenAt = performance.now();
        this.work();
    }

    /** Loads the pictures of the current pair anew. */
    retry() {
        this.current?.load();
        this.show();
    }

    /** Holds some pairs more than the one on the screen, so that the next is there at once; whoever shows the session
     * asks for it again from time to time, as pictures are drawn. */
    async fill() {
        if (this.filling || this.closed) return;
        this.filling = true;
        try {
            while (this.held.length < HELD_PAIRS && !this.closed) {
                const next = await nextPair(this.dataset, TAB, this.avoided().slice(0, MOST_AVOIDED));
                this.error = null;
                if (!this.take(next)) break;
            }
        } catch (error) {
            this.error = saidBy(error);
        } finally {
            this.filling = false;
            this.work();
        }
    }

    /**
     * @param {import("./server.js").Next} next
     * @returns {boolean} whether it brought a pair
     */
    take({ pair, progress, alone, guideline, notes }) {
        Object.assign(this, { progress, alone, guideline, notes: notes ?? [] });
        this.exhausted = !pair || this.avoided().some((known) => same(known, pair));
        if (this.exhausted) return false;
        this.held.push(new HeldPair(this.dataset, pair));
        if (this.held.length === 1) this.show();
        return true;
    }

    /** @param {{progress: import("./server.js").Progress, stands?: boolean}} answer */
    took({ progress, stands }) {
        this.progress = progress;
        if (stands === false) this.message = ["ratedBefore", {}];
        this.tell("changed");
    }

    /** Pairs that the server need not give: held here, or voted on and not sent. */
    avoided() {
        const unsent = this.outbox.waiting.flatMap((item) => item.pair ?? []);
        return [...this.held.map((held) => held.pair), ...unsent];
    }

    /** Votes of an earlier page that the server has not taken and that nobody has taken back. */
    leftovers() {
        const items = this.outbox.waiting;
        const undone = new Set(items.map((item) => ("undo" in item.body ? item.body.undo : "")));
        return items.flatMap(({ body, pair }) =>
            "rating" in body && pair && !undone.has(body.rating) ? [{ rating: body.rating, pair }] : []);
    }

    /** @param {string} key @param {import("./texts.js").Values} [values] */
    say(key, values = {}) {
        this.message = [key, values];
        this.tell("changed");
    }

    /** @param {string} name @param {any} [detail] */
    tell(name, detail) {
        if (!this.closed) this.dispatchEvent(new CustomEvent(name, { detail }));
    }
}

/** Whether two pairs are the same pictures, on whichever sides. @param {Pair} one @param {Pair} other */
const same = (one, other) => new Set([one.left, one.right, other.left, other.right]).size === 2;

/** The second frame from now begins after the first was painted. */
const painted = () => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)));
