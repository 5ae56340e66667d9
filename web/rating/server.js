// What the rating dialog asks of the server; each answer is the server's own, each error one sentence.

import { api } from "../../../scripts/api.js";

const PATIENCE_MILLISECONDS = 60000;

/**
 * @typedef {{text: string, key?: string, values?: Record<string, string | number>}} Said a sentence in English and,
 *     where the texts have it in other languages, its key there
 * @typedef {{left: string, right: string, prompt: string, repeat: boolean}} Pair two pictures by their ids
 * @typedef {{rated: number, waiting: number, pairs: number, agreement: [number, number]}} Progress
 * @typedef {{pair: Pair | null, progress: Progress, alone: number, guideline: string, last: string | null,
 *     notes: Said[]}} Next `alone`: how many prompts have one picture only
 * @typedef {{name: string, candidates: number, prompts: number, pairs: number, rated: number, waiting: number}} Counts
 * @typedef {"left" | "right" | "tie" | "skip"} Choice
 * @typedef {{rating: string, choice: Choice, seconds: number | null} & Omit<Pair, "prompt">} Vote
 * @typedef {{undo: string}} Undo
 */

/** A request that got no usable answer. */
export class ServerError extends Error {
    /**
     * @param {Said} said
     * @param {boolean} final whether the server refused what it was asked, and would refuse it again
     * @param {number} [status] of its answer
     */
    constructor(said, final, status) {
        super(said.text);
        this.said = said;
        this.final = final;
        this.status = status;
    }
}

// Refused for what the request says. All else (a full disk, a login that ran out, a proxy's page) can pass.
const FINAL_STATUSES = new Set([400, 404, 409, 413, 415]);

/**
 * @param {string} path
 * @param {object} [body] makes it a POST
 * @returns {Promise<any>}
 */
async function ask(path, body) {
    /** @type {RequestInit} */
    const options = { cache: "no-store", signal: AbortSignal.timeout(PATIENCE_MILLISECONDS) };
    if (body) {
        options.method = "POST";
        options.headers = { "Content-Type": "application/json" };
        options.body = JSON.stringify(body);
        // A vote on its way arrives although the page is closed.
        options.keepalive = true;
    }
    let response, answer;
    try {
        response = await api.fetchApi(path, options);
        answer = await response.json();
    } catch (error) {
        const text = response ? `${response.status} ${response.statusText}` : String(error.message ?? error);
        throw new ServerError({ text }, false);
    }
    if (response.ok) return answer;
    const { error, key, values } = answer ?? {}, own = typeof error === "string";
    throw new ServerError(own ? { text: error, key, values } : { text: `${response.status} ${response.statusText}` },
        own && FINAL_STATUSES.has(response.status), response.status);
}

/** What an error says, whosever it is. @param {Error} error @returns {Said} */
export const saidBy = (error) => (error instanceof ServerError ? error.said : { text: String(error.message) });

/** @param {string} dataset */
const folder = (dataset) => `/chats/${encodeURIComponent(dataset)}`;

/** @returns {Promise<Counts[]>} newest first */
export const datasets = async () => (await ask("/chats/datasets")).datasets;

/**
 * @param {string} dataset
 * @param {string} tab
 * @param {Pair[]} avoid pairs that this page holds already
 * @returns {Promise<Next>}
 */
export const nextPair = (dataset, tab, avoid) => {
    const held = avoid.map(({ left, right }) => `${left}-${right}`).join(",");
    return ask(`${folder(dataset)}/pair?${new URLSearchParams({ tab, avoid: held })}`);
};

/**
 * @param {string} dataset
 * @param {Vote | Undo} body
 * @returns {Promise<{progress: Progress, stands?: boolean, pair?: Pair}>}
 */
export const rate = (dataset, body) => ask(`${folder(dataset)}/rating`, body);

/**
 * @param {string} dataset
 * @param {string} guideline
 * @returns {Promise<string>} the guideline as it was kept
 */
export const writeGuideline = async (dataset, guideline) =>
    (await ask(`${folder(dataset)}/guideline`, { guideline })).guideline;

/**
 * @param {string} dataset
 * @param {string} id
 */
export function pictureAddress(dataset, id) {
    const place = { filename: `${id}.png`, type: "output", subfolder: `chats/${dataset}/images` };
    return api.apiURL(`/view?${new URLSearchParams(place)}`);
}

/** The user of this page; empty where ComfyUI has but one. */
export const user = () => api.user ?? "";

/**
 * Calls back when a node has run.
 * @param {() => void} callback
 * @returns {() => void} ends it
 */
export function onNodeRun(callback) {
    api.addEventListener("executed", callback);
    return () => api.removeEventListener("executed", callback);
}

/** @returns {Promise<Record<string, any>>} the packs' texts by language */
export const translations = () => ask("/i18n");

/** Sixteen hexadecimal digits of chance: a rating's or a page's name. */
export const newName = () =>
    Array.from(crypto.getRandomValues(new Uint8Array(8)), (byte) => byte.toString(16).padStart(2, "0")).join("");
