/** The active configuration, read-only, and its reload. */

import { ask, send } from "./api.js";
import { confirm, say } from "./dialogs.js";
import { byId, setText } from "./dom.js";

/** The generation that is shown. */
let generation = -1;

async function loadConfiguration() {
  try {
    const found = /** @type {import("./views.js").Configuration} */ (await ask("config"));
    generation = found.generation;
    setText(byId("configuration-text"), found.text);
    setText(byId("configuration-path"), `${found.path}, generation ${found.generation}`);
  } catch (error) {
    setText(byId("configuration-path"), error instanceof Error ? error.message : String(error));
  }
}

/**
 * Reads it again where a reload has replaced it.
 * @param {import("./views.js").Status} status
 */
export function followConfiguration(status) {
  if (byId("configuration-details").open && status.generation !== generation) {
    generation = status.generation; // once for each, also where it fails
    void loadConfiguration();
  }
}

async function copy() {
  try {
    await navigator.clipboard.writeText(byId("configuration-text").textContent);
    say("The configuration is copied");
  } catch {
    // Without TLS the browser has no clipboard for pages, except on loopback.
    getSelection()?.selectAllChildren(byId("configuration-text"));
    say("The text is selected: copy it with the keyboard");
  }
}

function reload() {
  confirm({
    title: "Reload the configuration?",
    lines: [
      "The file is read again and checked. If it is not valid, all stays as it is.",
      "Connections and tunnels stay.",
    ],
    go: "Reload",
    act: async () => {
      const outcome = /** @type {import("./views.js").Reload} */ (await send("POST", "reload", {}));
      if (!outcome.ok) throw new Error(`Not reloaded: ${outcome.error}`);
      const changes = outcome.changes.length ? outcome.changes.join("; ") : "nothing changed";
      return `Reloaded, generation ${outcome.generation}: ${changes}`;
    },
  });
}

export function startConfiguration() {
  byId("configuration-details").ontoggle = () => byId("configuration-details").open && loadConfiguration();
  byId("copy-configuration").onclick = copy;
  byId("reload").onclick = reload;
}
