/** The list of tunnels: a filter, pages, and closing. It is asked for, as it costs the workers something. */

import { ask, send } from "./api.js";
import { confirm } from "./dialogs.js";
import { byId, element, follow, setAttribute, setText, tableRow, twoLines } from "./dom.js";
import { UNKNOWN, bytes, plural, roughly, timeOfDay } from "./format.js";

/** @typedef {import("./views.js").Tunnel} Tunnel */
/** @typedef {import("./views.js").TunnelPage} TunnelPage */

const PAGE = 50;
const MINUTE = 60;

const TUNNEL_COLUMNS = {
  client: "Client",
  route: "Route",
  server: "Server",
  worker: "Worker",
  age: "Age",
  idle: "Idle",
  up: "From client",
  down: "From server",
  close: "Close",
};

/** @type {[string, string][]} */
const CLOSE_CODES = [
  ["1001", "1001 going away"],
  ["1012", "1012 service restart: clients come back"],
  ["1013", "1013 try again later"],
  ["1008", "1008 policy violation"],
  ["1000", "1000 normal closure"],
];

/** Cursors of the pages before this one, and the shown filter. */
const shown = { back: /** @type {string[]} */ ([]), cursor: "", next: "", filter: /** @type {Record<string, string>} */ ({}) };

/**
 * The filter as the API takes it; minutes become seconds.
 * @returns {Record<string, string>}
 */
function readFilter() {
  const data = new FormData(byId("tunnel-filter"));
  /** @type {Record<string, string>} */
  const filter = {};
  for (const [name, value] of data) {
    const text = String(value).trim();
    if (text) filter[name] = name === "older" || name === "idle" ? String(Number(text) * MINUTE) : text;
  }
  // A server's name is unique in its pool alone, so that the option has both.
  if (filter.server) [filter.pool, filter.server] = JSON.parse(filter.server);
  return filter;
}

/** One tunnel. */
class TunnelRow {
  /** @param {Tunnel} tunnel */
  constructor(tunnel) {
    const { node, cells } = tableRow(TUNNEL_COLUMNS, ["client", "route", "server", "close"]);
    this.node = node;
    this.cells = cells;
    this.tunnel = tunnel;
    this.client = twoLines(cells.client);
    this.route = twoLines(cells.route);
    this.up = twoLines(cells.up);
    this.down = twoLines(cells.down);
    const label = `Close the tunnel of ${tunnel.client} to ${tunnel.pool}/${tunnel.server}`;
    const button = element("button", { type: "button", class: "small", "aria-label": label }, "Close…");
    button.onclick = () => closeOne(this.tunnel);
    cells.close.append(button);
  }

  /** @param {Tunnel} tunnel */
  update(tunnel) {
    this.tunnel = tunnel;
    this.client(tunnel.client, `${tunnel.tls ? "TLS" : "plain text"}, ${tunnel.crash_safe ? "" : "not "}crash-safe`);
    this.route(tunnel.route, tunnel.host + tunnel.path);
    setText(this.cells.server, `${tunnel.pool}/${tunnel.server}`);
    setText(this.cells.worker, tunnel.worker);
    setText(this.cells.age, roughly(tunnel.age));
    setText(this.cells.idle, roughly(tunnel.idle));
    this.up(bytes(tunnel.client_bytes), messageWords(tunnel.client_messages));
    this.down(bytes(tunnel.server_bytes), messageWords(tunnel.server_messages));
  }
}

/** @param {number} number */
function messageWords(number) {
  return number < 0 ? UNKNOWN : plural(number, "message");
}

/** Shows the page at `shown.cursor`. */
async function load() {
  const query = new URLSearchParams({ ...shown.filter, limit: String(PAGE) });
  if (shown.cursor) query.set("cursor", shown.cursor);
  setAttribute(byId("tunnel-table"), "aria-busy", "true");
  try {
    showPage(await ask(`tunnels?${query}`));
  } catch (error) {
    setText(byId("tunnel-count"), error instanceof Error ? error.message : String(error));
  }
  byId("tunnel-table").removeAttribute("aria-busy");
}

/** @param {TunnelPage} page */
function showPage(page) {
  follow(byId("tunnel-rows"), page.tunnels, (tunnel) => tunnel.id, (tunnel) => new TunnelRow(tunnel));
  shown.next = page.cursor;
  const filtered = Object.keys(shown.filter).length > 0;
  const missing = page.missing.length ? ` Workers ${page.missing.join(", ")} did not answer: the list is not complete.` : "";
  const from = shown.back.length * PAGE;
  const range = page.tunnels.length ? ` ${from + 1} to ${from + page.tunnels.length} are shown,` : "";
  const what = `${plural(page.total, "tunnel")}${filtered ? " of this filter" : ""}.`;
  setText(byId("tunnel-count"), `${what}${range || " Nothing to show,"} as of ${timeOfDay(Date.now() / 1000)}.${missing}`);
  byId("tunnels-back").disabled = !shown.back.length;
  byId("tunnels-on").disabled = !page.cursor;
  byId("close-matching").hidden = !filtered || !page.total;
  byId("close-matching").onclick = () => closeMatching(page.total);
}

/** Starts again with the first page of what the form says. */
function search() {
  Object.assign(shown, { back: [], cursor: "", filter: readFilter() });
  return load();
}

/** Fields for the close code and the reason. */
function closeFields() {
  const options = CLOSE_CODES.map(([value, words]) => element("option", { value }, words));
  const code = element("select", {}, ...options, element("option", { value: "" }, "another code"));
  const other = element("input", { type: "number", min: "1000", max: "4999", value: "4000", inputmode: "numeric" });
  const reason = element("input", { maxlength: "123", autocomplete: "off", placeholder: "none" });
  const otherLabel = element("label", { hidden: "" }, "Code ", other);
  code.onchange = () => {
    otherLabel.hidden = code.value !== "";
  };
  const fields = [element("label", {}, "Close code ", code), otherLabel, element("label", {}, "Reason for the client ", reason)];
  return { fields, read: () => ({ code: Number(code.value || other.value), reason: reason.value }) };
}

/**
 * @param {string} title
 * @param {string[]} lines
 * @param {object} which conditions of TunnelClose
 */
function closeTunnels(title, lines, which) {
  const { fields, read } = closeFields();
  confirm({
    title,
    lines: [...lines, "A WebSocket close frame tells the code; most clients connect again at once."],
    go: "Close",
    danger: true,
    fields,
    act: async () => {
      const closed = await send("POST", "tunnels/close", { ...which, ...read() });
      void load();
      const missing = closed.missing.length ? `; workers ${closed.missing.join(", ")} did not answer` : "";
      return `${plural(closed.count, "tunnel")} closing${missing}`;
    },
  });
}

/** @param {Tunnel} tunnel */
function closeOne(tunnel) {
  const age = `It goes to ${tunnel.pool}/${tunnel.server}, and is ${roughly(tunnel.age)} old.`;
  closeTunnels(`Close the tunnel of ${tunnel.client}?`, [age], { ids: [tunnel.id] });
}

/** @param {number} total */
function closeMatching(total) {
  const { worker, older, idle, ...rest } = shown.filter;
  if (worker) {
    setText(byId("tunnel-count"), "Tunnels are closed by route, pool, server, client or time; take out the worker.");
    return;
  }
  const times = { ...(older && { older: Number(older) }), ...(idle && { idle: Number(idle) }) };
  const words = Object.entries(rest).map(([name, value]) => `${name} ${value}`);
  if (older) words.push(`older than ${roughly(Number(older))}`);
  if (idle) words.push(`idle for ${roughly(Number(idle))}`);
  closeTunnels(`Close ${plural(total, "tunnel")}?`, [`All with ${words.join(", ")}.`], { ...rest, ...times });
}

/**
 * @param {HTMLSelectElement} select
 * @param {{value: string, words: string}[]} options
 */
function showOptions(select, options) {
  follow(select, [{ value: "", words: "any" }, ...options], ({ value }) => value, ({ value, words }) => ({
    node: element("option", { value }, words),
    update: () => {},
  }));
}

/** @param {import("./views.js").Status} status */
export function showTunnelChoices({ routes, pools, workers }) {
  const { route, pool, server, worker } = byId("tunnel-filter").elements;
  const same = (/** @type {{name: string}} */ { name }) => ({ value: name, words: name });
  showOptions(route, routes.map(same));
  showOptions(pool, pools.map(same));
  const servers = pools.flatMap((each) => each.servers);
  showOptions(server, servers.map(({ pool: of, name }) => ({ value: JSON.stringify([of, name]), words: `${of}/${name}` })));
  showOptions(worker, workers.map(({ slot }) => ({ value: String(slot), words: String(slot) })));
}

export function startTunnels() {
  byId("tunnel-filter").onsubmit = (/** @type {Event} */ event) => {
    event.preventDefault();
    void search();
  };
  byId("tunnel-details").ontoggle = () => byId("tunnel-details").open && search();
  byId("tunnels-on").onclick = () => {
    shown.back.push(shown.cursor);
    shown.cursor = shown.next;
    return load();
  };
  byId("tunnels-back").onclick = () => {
    shown.cursor = shown.back.pop() ?? "";
    return load();
  };
}
