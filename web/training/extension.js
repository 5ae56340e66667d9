// A pair that was trained is listed at once, in the LoRA loaders that are open and in those that are opened next.

import { api } from "../../../scripts/api.js";
import { app } from "../../../scripts/app.js";

app.registerExtension({
    name: "CHATS.Training",

    async setup() {
        // What the key R does.
        api.addEventListener("chats.pair_written", () => app.refreshComboInNodes());
    },
});
