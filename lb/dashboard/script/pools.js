/** The pools with their servers: what each is, does, and how to steer it. */

import { ADMIN_WORDS, changeServer } from "./actions.js";
import { badge, byId, element, follow, setAttribute, setText, tableRow, twoLines } from "./dom.js";
import { UNKNOWN, count, milliseconds, plural, rate, roughly } from "./format.js";
import { counters } from "./rates.js";

/** @typedef {import("./views.js").Server} Server */
/** @typedef {import("./views.js").Pool} Pool */
/** @typedef {import("./views.js").AdminState} AdminState */

const COLUMNS = {
  name: "Server",
  state: "State",
  active: "Active",
  tunnels: "Tunnels",
  idle: "Idle",
  requests: "Req/s",
  errors: "Errors/s",
  weight: "Weight",
  check: "Last check",
  set: "Set to",
};

const NUMBERS = ["active", "tunnels", "idle", "requests", "errors", "weight"];
const WORDS = Object.keys(COLUMNS).filter((name) => !NUMBERS.includes(name));

/** How good each state is; the shape has the state's name. */
const TONES = {
  up: "good",
  unchecked: "quiet",
  starting: "info",
  drain: "info",
  maint: "info",
  ejected: "warn",
  down: "bad",
};

/** One server's row. */
class ServerRow {
  constructor() {
    const { node, cells } = tableRow(COLUMNS, WORDS);
    this.node = node;
    this.cells = cells;
    this.name = twoLines(cells.name);
    this.state = badge();
    this.why = element("span", { class: "second" });
    cells.state.append(this.state.node, this.why);
    this.check = twoLines(cells.check);
    this.buttons = this.makeButtons();
    /** @type {{pool: Pool, server: Server} | null} */
    this.last = null;
  }

  makeButtons() {
    const group = element("div", { class: "switch", role: "group" });
    this.cells.set.append(group);
    const admins = /** @type {AdminState[]} */ (Object.keys(ADMIN_WORDS));
    return admins.map((admin) => {
      const button = element("button", { type: "button" }, ADMIN_WORDS[admin]);
      button.onclick = () => this.last && changeServer(this.last.pool, this.last.server, admin);
      group.append(button);
      return { admin, button };
    });
  }

  /** @param {{pool: Pool, server: Server, time: number}} what */
  update({ pool, server, time }) {
    this.last = { pool, server };
    this.name(server.name, addressWords(server));
    setAttribute(this.node, "data-tone", TONES[server.state] ?? "quiet");
    this.state.show(server.state, TONES[server.state] ?? "quiet", server.state);
    setText(this.why, movingWords(server, time) || server.why || (server.since ? `for ${roughly(time - server.since)}` : "since the start"));
    this.check(...checkWords(server, time));
    this.updateNumbers(pool, server, time);
    for (const { admin, button } of this.buttons) {
      setAttribute(button, "aria-pressed", String(server.admin === admin));
      setAttribute(button, "aria-label", `${ADMIN_WORDS[admin]}: ${pool.name}/${server.name}`);
    }
  }

  /**
   * @param {Pool} pool
   * @param {Server} server
   * @param {number} time
   */
  updateNumbers(pool, server, time) {
    const { active, tunnels, idle, requests, errors, weight } = this.cells;
    const key = JSON.stringify([pool.name, server.name]);
    const failing = counters.rate(`errors ${key}`, time, server.errors);
    setText(active, server.max_connections ? `${count(server.active)} / ${count(server.max_connections)}` : count(server.active));
    setText(tunnels, count(server.tunnels));
    setText(idle, count(server.idle));
    setText(requests, rate(counters.rate(`requests ${key}`, time, server.requests)));
    setText(errors, rate(failing));
    setAttribute(errors, "data-tone", failing ? "warn" : "");
    setText(weight, weightWords(server));
  }
}

/**
 * What is still to be moved away from a server that drains; empty where nothing is.
 * @param {Server} server
 * @param {number} time
 */
function movingWords({ empty_by: by, tunnels }, time) {
  if (!by || !tunnels) return "";
  const left = plural(tunnels, "tunnel");
  return by > time ? `${left} to move within ${roughly(by - time)}` : `${left} did not move in time`;
}

/** @param {Server} server */
function addressWords(server) {
  const addresses = server.addresses.filter((address) => address !== server.address);
  const words = server.address === server.name ? addresses : [server.address, ...addresses];
  const rest = words.length > 2 ? ` +${words.length - 2}` : "";
  return words.slice(0, 2).join(", ") + rest + (server.backup ? `${words.length ? " · " : ""}backup` : "");
}

/** @param {Server} server */
function weightWords({ weight, effective_weight: effective }) {
  const now = Number.isInteger(effective) ? count(effective) : effective.toFixed(1);
  return effective === weight ? now : `${now} of ${weight}`;
}

/**
 * @param {Server} server
 * @param {number} time
 * @returns {[string, string]}
 */
function checkWords({ last_check: check }, time) {
  if (!check) return [UNKNOWN, ""];
  const result = check.result === "ok" ? `ok, ${milliseconds(check.seconds)}` : check.detail || check.result;
  return [result, `${roughly(time - check.at)} ago`];
}

/** One pool: a heading, and a table of its servers. */
class PoolCard {
  /** @param {Pool} pool */
  constructor(pool) {
    const id = `pool-${encodeURIComponent(pool.name)}`;
    this.facts = element("p", { class: "pool-facts" });
    this.panic = badge();
    const head = element("div", { class: "pool-head" }, element("h3", { id }, pool.name), this.panic.node, this.facts);
    this.body = element("tbody", { role: "rowgroup" });
    const table = element("table", { class: "servers", role: "table", "aria-labelledby": id }, tableHead(), this.body);
    this.node = element("section", { class: "card pool", "aria-labelledby": id }, head, table);
  }

  /** @param {{pool: Pool, time: number}} what */
  update({ pool, time }) {
    setText(this.facts, factsOf(pool));
    this.panic.node.hidden = !pool.panic && pool.usable > 0;
    if (pool.panic) this.panic.show("ejected", "warn", "panic: too few are usable, all are used");
    else this.panic.show("down", "bad", "no usable server");
    const rows = pool.servers.map((server) => ({ pool, server, time }));
    follow(this.body, rows, ({ server }) => server.name, () => new ServerRow());
  }
}

function tableHead() {
  const cells = Object.entries(COLUMNS).map(([name, label]) => {
    const look = { class: NUMBERS.includes(name) ? `cell-${name} number` : `cell-${name}` };
    return element("th", { scope: "col", role: "columnheader", ...look }, label);
  });
  return element("thead", { role: "rowgroup" }, element("tr", { role: "row" }, ...cells));
}

/** @param {Pool} pool */
function factsOf(pool) {
  const routes = pool.routes.length ? `from ${pool.routes.join(", ")}` : "no route leads here";
  const facts = [`${pool.usable} of ${plural(pool.servers.length, "server")} usable`, pool.balance, routes];
  if (pool.queued) facts.push(`${count(pool.queued)} queued`);
  if (pool.admission?.waiting) facts.push(`${count(pool.admission.waiting)} wait for admission at ${count(pool.admission.rate)}/s`);
  if (pool.retries) facts.push(`${count(pool.retries)} retries`);
  return facts.join(" · ");
}

/** @param {import("./views.js").Status} status */
export function showPools({ pools, time }) {
  const items = pools.map((pool) => ({ pool, time }));
  follow(byId("pool-list"), items, ({ pool }) => pool.name, ({ pool }) => new PoolCard(pool));
}
