// The dialog's texts, from the pack's locales/ as the server hands them out, in the language of the front end.

import { app } from "../../../scripts/app.js";
import { translations } from "./server.js";

const SECTION = "chatsRating";
const FALLBACK = "en";

/** @typedef {(key: string, values?: Record<string, string | number>) => string} Texts */

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
    const sections = [locale, locale.split("-")[0], FALLBACK].map((name) => languages[name]?.[SECTION] ?? {});
    return (key, values = {}) => {
        const text = sections.find((section) => key in section)?.[key] ?? key;
        return text.replace(/\{(\w+)\}/g, (whole, name) => (name in values ? String(values[name]) : whole));
    };
}
