// One zoom for two pictures: whatever is enlarged and moved in one is enlarged and moved in the other.

const LARGEST = 16, STEP = 1.25, MOVE = 0.1;
const WHEEL_PIXELS_PER_STEP = 100, PIXELS_PER_LINE = 33;

export class Zoom {
    /**
     * @param {HTMLElement[]} panes of one size, each with one picture
     * @param {(scale: number) => void} changed
     */
    constructor(panes, changed) {
        this.panes = panes;
        this.changed = changed;
        /** @type {Map<number, {x: number, y: number}>} what touches the panes, in pixels of the window */
        this.pointers = new Map();
        this.touched = false;
        this.reset();
        for (const pane of panes) this.listen(pane);
    }

    reset() {
        this.scale = 1;
        // How far the middle of the pictures lies from the middle of the panes, in panes.
        this.x = this.y = 0;
        // Where the mouse was last, from the middle of its pane, in panes.
        this.at = { x: 0, y: 0 };
        this.apply();
    }

    /** Between the whole picture and its own pixels, or twice its size where those are no larger. */
    toggle() {
        if (this.scale > 1) return this.to(1, { x: 0, y: 0 });
        const ratios = this.panes.map((pane) => {
            const picture = pane.querySelector("img");
            return picture?.naturalWidth
                ? Math.max(picture.naturalWidth / pane.clientWidth, picture.naturalHeight / pane.clientHeight)
                : 1;
        });
        const own = Math.max(...ratios) / devicePixelRatio;
        this.to(own > 1.1 ? own : 2, this.at);
    }

    /** @param {number} steps closer, or with a minus further away */
    by(steps) {
        this.to(this.scale * STEP ** steps, this.at);
    }

    /** @param {number} right @param {number} down in tenths of a pane */
    move(right, down) {
        this.x -= right * MOVE;
        this.y -= down * MOVE;
        this.apply();
    }

    /**
     * @param {number} scale
     * @param {{x: number, y: number}} fixed the point that stays where it is, from the middle, in panes
     */
    to(scale, fixed) {
        const wanted = Math.min(Math.max(scale, 1), LARGEST);
        this.x = fixed.x - ((fixed.x - this.x) * wanted) / this.scale;
        this.y = fixed.y - ((fixed.y - this.y) * wanted) / this.scale;
        this.scale = wanted;
        this.apply();
    }

    /** Shows it; also on pictures that have come since. */
    apply() {
        const most = (this.scale - 1) / 2;
        this.x = Math.min(Math.max(this.x, -most), most);
        this.y = Math.min(Math.max(this.y, -most), most);
        for (const pane of this.panes) {
            pane.classList.toggle("zoomed", this.scale > 1);
            const picture = pane.querySelector("img");
            if (picture) picture.style.transform =
                `translate(${this.x * 100}%, ${this.y * 100}%) scale(${this.scale})`;
        }
        this.changed(this.scale);
    }

    /** @param {HTMLElement} pane */
    listen(pane) {
        pane.addEventListener("wheel", (event) => {
            event.preventDefault();
            const unit = event.deltaMode === WheelEvent.DOM_DELTA_PIXEL ? 1 : PIXELS_PER_LINE;
            this.at = place(pane, event.clientX, event.clientY);
            this.by((-event.deltaY * unit) / WHEEL_PIXELS_PER_STEP);
        }, { passive: false });
        // A finger's taps choose.
        pane.addEventListener("dblclick", () => this.touched || this.toggle());
        pane.addEventListener("pointerdown", (event) => {
            this.touched = event.pointerType === "touch";
            if (event.button !== 0) return;
            pane.setPointerCapture(event.pointerId);
            this.pointers.set(event.pointerId, { x: event.clientX, y: event.clientY });
        });
        pane.addEventListener("pointermove", (event) => this.drag(pane, event));
        for (const end of ["pointerup", "pointercancel"])
            pane.addEventListener(end, (event) => this.pointers.delete(event.pointerId));
    }

    /** One pointer moves the pictures, two also enlarge them. @param {HTMLElement} pane @param {PointerEvent} event */
    drag(pane, event) {
        if (event.pointerType === "mouse") this.at = place(pane, event.clientX, event.clientY);
        const before = this.pointers.get(event.pointerId);
        if (!before) return;
        const now = { x: event.clientX, y: event.clientY };
        const others = [...this.pointers].filter(([id]) => id !== event.pointerId).map(([, other]) => other);
        this.x += (now.x - before.x) / pane.clientWidth / (others.length + 1);
        this.y += (now.y - before.y) / pane.clientHeight / (others.length + 1);
        this.pointers.set(event.pointerId, now);
        if (others.length !== 1) return this.apply();
        const [other] = others;
        const wider = Math.hypot(now.x - other.x, now.y - other.y) / Math.hypot(before.x - other.x, before.y - other.y);
        if (Number.isFinite(wider))
            this.to(this.scale * wider, place(pane, (now.x + other.x) / 2, (now.y + other.y) / 2));
    }
}

/**
 * A point of the window, from the middle of the pane, in panes.
 * @param {HTMLElement} pane
 * @param {number} x
 * @param {number} y
 */
function place(pane, x, y) {
    const box = pane.getBoundingClientRect();
    return { x: (x - box.left) / box.width - 0.5, y: (y - box.top) / box.height - 0.5 };
}
