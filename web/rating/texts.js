// The dialog's texts, from the pack's locales/ as the server hands them out, in the language of the front end.

import { app } from "../../../scripts/app.js";
import { translations } from "./server.js";

const SECTION = "chatsRating", SERVER_SECTION = "chatsRatingServer";
const FALLBACK = "en";
// ICU's form of a word that follows a number: {count, plural, one {# picture} other {# pictures}}.
const PLURAL = /\{(\w+), plural, one \{([^{}]*)\} other \{([^{}]*)\}\}/g, PLACE = /\{(\w+)\}/g;

/** @typedef {import("./server.js").Said} Said */
/** @typedef {Record<string, string | number | Said>} Values a sentence stands in a text in the text's language */
/** @typedef {{(key: string, values?: Values): string, said(sentence: Said): string}} Texts */

/** @type {Promise<Record<string, any>> | null} */
let loading = null;

/**
 * The texts in the language that is set now; English where a text has no translation.
 * @returns {Promise<Texts>}
 */
export async function loadTexts() {
    loading ??= translations();
    let languages = {};
    try {
        languages = await loading;
    } catch {
        // Asked again the next time. Without texts the keys are shown, and all works.
        loading = null;
    }
    const locale = app.extensionManager.setting.get("Comfy.Locale") ?? FALLBACK;
    const names = [locale, locale.split("-")[0], FALLBACK];
    // Of the languages that there are, only English has such words.
    const rules = new Intl.PluralRules(FALLBACK);
    const found = (section, key) =>
        names.map((name) => languages[name]?.[section]?.[key]).find((text) => typeof text === "string");
    const filled = (text, values) => text
        .replace(PLURAL, (_, name, one, other) =>
            (rules.select(Number(values[name])) === "one" ? one : other).replaceAll("#", String(values[name])))
        .replace(PLACE, (whole, name) => (name in values ? shown(values[name]) : whole));
    const said = ({ text, key = "", values = {} }) => {
        const translated = found(SERVER_SECTION, key);
        return translated === undefined ? text : filled(translated, values);
    };
    const shown = (value) => (typeof value === "object" ? said(value) : String(value));
    return Object.assign((key, values = {}) => filled(found(SECTION, key) ?? key, values), { said });
}
