// Fingers that choose: a short tap on a picture, in one place, with no other finger down.

const LONGEST_MILLISECONDS = 500, FARTHEST_PIXELS = 12;
// A double tap is one choice: the second would meet the next pair, unseen.
const BETWEEN_MILLISECONDS = 350;

/**
 * @param {HTMLElement[]} panes
 * @param {(index: number) => void} tapped with the pane's number
 */
export function onTaps(panes, tapped) {
    const down = new Set();
    /** @type {PointerEvent | null} what may become a tap */
    let begun = null, last = -Infinity;
    for (const [index, pane] of panes.entries()) {
        pane.addEventListener("pointerdown", (event) => {
            down.add(event.pointerId);
            begun = event.pointerType === "touch" && down.size === 1 ? event : null;
        });
        pane.addEventListener("pointerup", (event) => {
            down.delete(event.pointerId);
            const first = begun;
            begun = null;
            if (first?.pointerId !== event.pointerId) return;
            const moved = Math.hypot(event.clientX - first.clientX, event.clientY - first.clientY);
            if (moved > FARTHEST_PIXELS || event.timeStamp - first.timeStamp > LONGEST_MILLISECONDS) return;
            const since = event.timeStamp - last;
            last = event.timeStamp;
            if (since > BETWEEN_MILLISECONDS) tapped(index);
        });
        pane.addEventListener("pointercancel", (event) => {
            down.delete(event.pointerId);
            begun = null;
        });
    }
}
