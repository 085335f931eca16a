/** Wires the parts to the feed. */

import { Events } from "./events.js";
import { followConfiguration, startConfiguration } from "./configuration.js";
import { Feed } from "./feed.js";
import { Figures, showVerdict, titleOf } from "./overview.js";
import { counters } from "./rates.js";
import { showMachine } from "./machine.js";
import { showPools } from "./pools.js";
import { showSpread } from "./spread.js";
import { showTunnelChoices, startTunnels } from "./tunnels.js";
import { say } from "./dialogs.js";

const figures = new Figures();
const events = new Events();
let title = "shardlb";

/** @param {import("./views.js").Status} status */
function show(status) {
  document.body.classList.remove("waiting");
  showVerdict(status);
  figures.show(status);
  showPools(status);
  showSpread(status);
  showTunnelChoices(status);
  showMachine(status);
  followConfiguration(status);
  events.watch(status);
  counters.forget(status.time);
  title = titleOf(status);
  document.title = title;
}

/** @param {boolean} silent */
function silence(silent) {
  document.title = silent ? "✕ no answer · shardlb" : title;
  say(silent ? "No answer from the control process; the figures are the last ones. It is asked again." : "The control process answers again");
}

startTunnels();
startConfiguration();
void new Feed(show, silence).run();
