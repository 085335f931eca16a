/** What an operator does to a server: the question, with what will happen, and the request. */

import { send } from "./api.js";
import { confirm, say } from "./dialogs.js";
import { element } from "./dom.js";
import { plural } from "./format.js";

/** @typedef {import("./views.js").Server} Server */
/** @typedef {import("./views.js").Pool} Pool */
/** @typedef {import("./views.js").AdminState} AdminState */

/** @type {Record<AdminState, string>} */
export const ADMIN_WORDS = { ready: "Ready", drain: "Drain", maint: "Maint" };

/** @type {Record<AdminState, string>} */
const RESULT_WORDS = { ready: "is ready again", drain: "drains", maint: "is in maintenance" };

/**
 * What happens to a server's traffic.
 * @param {Server} server
 * @param {AdminState} admin
 * @returns {string[]}
 */
function consequences(server, admin) {
  if (admin === "ready") {
    return ["It gets new sessions and requests again, slowly at first where its pool has slow_start.", ...stillBad(server)];
  }
  const requests = server.active - server.tunnels;
  const tunnels = server.tunnels;
  const stay = tunnels === 1 ? "1 tunnel stays until it is closed" : `${plural(tunnels, "tunnel")} stay until closed`;
  const move = `${plural(tunnels, "tunnel")} ${tunnels === 1 ? "is" : "are"} asked to move, over the time of drain.spread.`;
  return [
    admin === "drain"
      ? "It gets no new sessions. Clients whose sticky session is here still come."
      : "It gets nothing new at all. Clients whose sticky session is here go to another server.",
    tunnels ? (admin === "drain" ? move : `${stay}; nobody is cut off.`) : "It has no tunnels.",
    ...(requests > 0 ? [`${plural(requests, "request")} in flight ${requests === 1 ? "ends" : "end"} as usual.`] : []),
  ];
}

/** @param {Server} server */
function stillBad(server) {
  if (server.health === "down") return ["Its health checks fail: it gets nothing until they pass."];
  return server.ejected_until ? ["It is ejected for the moment: it gets nothing until that ends."] : [];
}

/**
 * Whether nobody is left who could serve the pool.
 * @param {Pool} pool
 * @param {Server} server
 */
function isLast(pool, server) {
  const usable = (/** @type {Server} */ { state }) => ["up", "unchecked", "starting"].includes(state);
  return usable(server) && !pool.servers.some((other) => other.name !== server.name && usable(other));
}

/**
 * Asks, and sets the server's administrative state.
 * @param {Pool} pool
 * @param {Server} server
 * @param {AdminState} admin
 */
export function changeServer(pool, server, admin) {
  const name = `${pool.name}/${server.name}`;
  if (server.admin === admin) {
    say(`${name} ${RESULT_WORDS[admin]} already`);
    return;
  }
  const last = admin !== "ready" && isLast(pool, server);
  const warning = `No other server of ${pool.name} can be used: its new requests will be answered with 503.`;
  const titles = { ready: `Set ${name} to ready?`, drain: `Drain ${name}?`, maint: `Put ${name} into maintenance?` };
  const keep = element("input", { type: "checkbox" });
  const offersToKeep = admin === "drain" && server.tunnels > 0;
  confirm({
    title: titles[admin],
    lines: [...(last ? [warning] : []), ...consequences(server, admin)],
    go: { ready: "Set to ready", drain: "Drain", maint: "Into maintenance" }[admin],
    danger: last || admin === "maint",
    fields: offersToKeep ? [element("label", { class: "check" }, keep, " Leave its tunnels where they are")] : [],
    act: async () => {
      const path = `pools/${encodeURIComponent(pool.name)}/servers/${encodeURIComponent(server.name)}`;
      const now = /** @type {Server} */ (await send("PATCH", path, keep.checked ? { admin, keep_tunnels: true } : { admin }));
      return `${name} ${RESULT_WORDS[now.admin]}`;
    },
  });
}
