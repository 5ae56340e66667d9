// Votes on their way: each stays in the browser's storage until the server has taken it, whatever happens between.

import { datasets, rate, saidBy, ServerError, user } from "./server.js";

/** @typedef {import("./server.js").Vote} Vote */
/** @typedef {import("./server.js").Undo} Undo */
/** @typedef {import("./server.js").Pair} Pair */
/** @typedef {{order: number, user: string, body: Vote | Undo, pair: Pair | null}} Item */

const PREFIX = "chats.unsent.";
const FIRST_WAIT_MILLISECONDS = 1000, LONGEST_WAIT_MILLISECONDS = 15000;

/**
 * The unsent votes and undos of one data set, sent one after the other in the order of their making.
 *
 * An item of the storage holds one of them, so that tabs that share the storage never write over each other; sending
 * one twice is harmless, as the server knows it by its name.
 */
class Outbox extends EventTarget {
    /** @param {string} dataset */
    constructor(dataset) {
        super();
        this.dataset = dataset;
        /** @type {Map<string, Item>} */
        this.items = new Map();
        /** @type {Set<string>} items that the server may know already */
        this.tried = new Set();
        /** @type {import("./server.js").Said | null} why the oldest is not sent */
        this.error = null;
        /** @type {Set<string>} items whose pictures the server does not have now; their data set may come back */
        this.away = new Set();
        /** @type {boolean} whether the browser would not keep a vote over a reload */
        this.unkept = false;
        /** @type {Promise<void> | null} */
        this.sending = null;
        this.wait = FIRST_WAIT_MILLISECONDS;
        this.timer = 0;
    }

    /** Takes over what an earlier page, or another tab, left in the storage; what was not there may be there now. */
    adopt() {
        this.away.clear();
        for (const [key, item] of stored(this.dataset)) {
            if (this.items.has(key)) continue;
            this.items.set(key, item);
            this.tried.add(key);
        }
    }

    /** @returns {Item[]} oldest first */
    get waiting() {
        return [...this.items.values()].sort((one, other) => one.order - other.order);
    }

    /**
     * @param {Vote | Undo} body
     * @param {Pair | null} pair what a vote was about
     */
    add(body, pair) {
        const order = Math.max(Date.now(), ...this.waiting.map((item) => item.order + 1));
        const key = keyOf(this.dataset, body), item = { order, user: user(), body, pair };
        this.items.set(key, item);
        try {
            localStorage.setItem(key, JSON.stringify(item));
        } catch {
            // Full or forbidden: the vote lives as long as the page.
            this.unkept = true;
        }
        this.send();
    }

    /**
     * Takes a vote back that the server cannot know yet.
     * @param {string} rating
     * @returns {boolean} whether it could be
     */
    withdraw(rating) {
        const key = `${PREFIX}${this.dataset}.${rating}`;
        if (!this.items.has(key) || this.tried.has(key)) return false;
        this.remove(key);
        this.tell("changed");
        return true;
    }

    /** @returns {Promise<void>} ends when all are sent, or one could not be */
    send() {
        clearTimeout(this.timer);
        this.sending ??= this.sendAll().finally(() => {
            this.sending = null;
            this.tell("changed");
            // Added between the last answer and now.
            if (this.items.size && !this.error) this.send();
        });
        return this.sending;
    }

    async sendAll() {
        const next = () => this.waiting.find(({ body }) => !this.away.has(keyOf(this.dataset, body)));
        let reason = null;
        try {
            for (let item = next(); item; item = next()) reason = (await this.sendOne(item)) ?? reason;
        } catch (error) {
            reason = saidBy(error);
        }
        this.error = this.away.size ? (reason ?? this.error) : reason;
        if (!this.error) return;
        this.timer = setTimeout(() => {
            this.away.clear();
            this.send();
        }, this.wait);
        this.wait = Math.min(this.wait * 2, LONGEST_WAIT_MILLISECONDS);
    }

    /**
     * @param {Item} item
     * @returns {Promise<import("./server.js").Said | void>} why it has to wait while others go on
     */
    async sendOne(item) {
        const key = keyOf(this.dataset, item.body);
        this.tried.add(key);
        try {
            const answer = await rate(this.dataset, item.body);
            this.wait = FIRST_WAIT_MILLISECONDS;
            if (!this.away.size) this.error = null;
            this.remove(key);
            this.tell("taken", answer);
        } catch (error) {
            if (!(error instanceof ServerError && error.final) || (await this.isAway(error))) throw error;
            if (error.status === 404 && this.isElsewhere(item.body)) {
                this.away.add(key);
                return error.said;
            }
            this.remove(key);
            // An undo of what the server never took has nothing left to do.
            if ("undo" in item.body) return;
            console.warn(`CHATS: a rating in "${this.dataset}" was refused: ${error.message}`);
            this.tell("refused", error.said);
        }
    }

    /**
     * Whether what a data set of this name does not know may be in another one: the right one was moved, and this one
     * begun in its place.
     * @param {Vote | Undo} body
     */
    isElsewhere(body) {
        return "rating" in body || this.away.has(keyOf(this.dataset, { rating: body.undo }));
    }

    /** Whether the whole data set is gone, and not one picture: its drive may come back. @param {ServerError} error */
    async isAway(error) {
        return error.status === 404 && !(await datasets()).some(({ name }) => name === this.dataset);
    }

    /** @param {string} key */
    remove(key) {
        this.items.delete(key);
        this.tried.delete(key);
        this.away.delete(key);
        try {
            localStorage.removeItem(key);
        } catch {
            // Forbidden: then it was never there.
        }
    }

    /** @param {string} name @param {any} [detail] */
    tell(name, detail) {
        this.dispatchEvent(new CustomEvent(name, { detail }));
    }
}

/** @param {string} dataset @param {Vote | Undo} body */
const keyOf = (dataset, body) =>
    "undo" in body ? `${PREFIX}${dataset}.${body.undo}.undo` : `${PREFIX}${dataset}.${body.rating}`;

/**
 * What this user left in the storage, of one data set or of all.
 * @param {string} [dataset]
 * @returns {[string, Item][]}
 */
function stored(dataset) {
    const found = [];
    try {
        for (const key of Object.keys(localStorage)) {
            // Names of data sets have no dots.
            if (!key.startsWith(PREFIX) || (dataset && datasetOf(key) !== dataset)) continue;
            const item = readItem(localStorage.getItem(key));
            if (item && item.user === user()) found.push([key, item]);
        }
    } catch (error) {
        if (!(error instanceof DOMException)) throw error;
    }
    return found;
}

/** @param {string} key */
const datasetOf = (key) => key.slice(PREFIX.length).split(".")[0];

/** @param {string | null} text @returns {Item | null} */
function readItem(text) {
    try {
        const item = JSON.parse(text ?? "");
        return typeof item?.order === "number" && typeof item?.body === "object" && item.body ? item : null;
    } catch {
        return null;
    }
}

/** @type {Map<string, Outbox>} */
const outboxes = new Map();

/** @param {string} dataset @returns {Outbox} the page's only one of that data set */
export function outboxOf(dataset) {
    let outbox = outboxes.get(dataset);
    if (!outbox) outboxes.set(dataset, (outbox = new Outbox(dataset)));
    outbox.adopt();
    return outbox;
}

/** Sends what an earlier page could not, now and whenever the network is back. */
export function sendLeftovers() {
    const send = () => new Set(stored().map(([key]) => datasetOf(key))).forEach((dataset) => outboxOf(dataset).send());
    addEventListener("online", send);
    send();
}

