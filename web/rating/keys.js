// Keys while the dialog is open: all of them are its own, and none reaches the canvas below.

/**
 * @param {(event: KeyboardEvent) => void} handle
 * @returns {() => void} ends it
 */
export function captureKeys(handle) {
    const taken = new Set();
    const down = (event) => {
        event.stopImmediatePropagation();
        taken.add(event.code);
        handle(event);
        hideFromUndo(event);
    };
    // A key that went down before the dialog opened comes up for whom it went down.
    const up = (event) => {
        if (taken.delete(event.code)) event.stopImmediatePropagation();
    };
    const stop = (event) => event.stopImmediatePropagation();
    addEventListener("keydown", down, true);
    addEventListener("keyup", up, true);
    for (const name of ["copy", "cut", "paste"]) addEventListener(name, stop, true);
    return () => {
        removeEventListener("keydown", down, true);
        removeEventListener("keyup", up, true);
        for (const name of ["copy", "cut", "paste"]) removeEventListener(name, stop, true);
    };
}

/**
 * The front ends 1.27 and 1.35 listen on the window before any extension can, and read the event a frame later: a
 * Ctrl + Z in the dialog would also undo the last change of the graph.
 * @param {KeyboardEvent} event
 */
function hideFromUndo(event) {
    for (const name of ["ctrlKey", "metaKey"]) Object.defineProperty(event, name, { value: false });
}
