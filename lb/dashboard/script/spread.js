/** How the tunnels are spread over servers and workers. */

import { byId, element, follow, setText } from "./dom.js";
import { count } from "./format.js";

/** @typedef {import("./views.js").Server} Server */
/** @typedef {import("./views.js").Status} Status */
/** @typedef {{key: string, label: string, numbers: number[], most: number, total: boolean}} Line */

/**
 * One cell; the more tunnels, the stronger its ground. The number stands there, too.
 * @param {{value: number, most: number}} what
 */
function makeCell(what) {
  const node = element("td", { class: "number" });
  const update = (/** @type {typeof what} */ { value, most }) => {
    setText(node, count(value));
    node.classList.toggle("zero", value === 0);
    node.style.setProperty("--heat", most ? `${Math.round((value / most) * 100)}%` : "0%");
  };
  return { node, update };
}

/** A line of the table: a server, or the sum of all. */
class SpreadRow {
  /** @param {Line} line */
  constructor(line) {
    this.heading = element("th", { scope: "row" }, line.label);
    this.node = element("tr", { class: line.total ? "total" : "" }, this.heading);
    /** @type {{node: HTMLElement, update: (what: {value: number, most: number}) => void}[]} */
    this.made = [];
  }

  /** @param {Line} line */
  update({ numbers, most }) {
    while (this.made.length > numbers.length) this.made.pop()?.node.remove();
    while (this.made.length < numbers.length) {
      const cell = makeCell({ value: 0, most });
      this.made.push(cell);
      this.node.append(cell.node);
    }
    // The last one is the sum: no heat.
    numbers.forEach((value, index) => this.made[index].update({ value, most: index < numbers.length - 1 ? most : 0 }));
  }
}

/**
 * The tunnels of a server on each worker, and their sum.
 * @param {Server} server
 * @param {number[]} slots
 */
function numbersOf(server, slots) {
  return [...slots.map((slot) => server.tunnels_by_worker[slot] ?? 0), server.tunnels];
}

/** @param {Status} status */
export function showSpread({ pools, workers }) {
  const slots = workers.map((worker) => worker.slot);
  const servers = pools.flatMap((pool) => pool.servers.map((server) => ({ name: `${pool.name}/${server.name}`, server })));
  const numbers = servers.map(({ server }) => numbersOf(server, slots));
  const most = Math.max(0, ...numbers.flatMap((row) => row.slice(0, -1)));
  const lines = servers.map(({ name }, index) => ({ key: `s ${name}`, label: name, numbers: numbers[index], most, total: false }));
  const totals = [...slots, -1].map((_, column) => numbers.reduce((all, row) => all + row[column], 0));
  const heads = ["Server", ...slots.map((slot) => `Worker ${slot}`), "All"];
  follow(byId("spread-head"), heads, String, (name) => ({
    node: element("th", { scope: "col", class: name === "Server" ? "" : "number" }, name),
    update: () => {},
  }));
  const all = { key: "total", label: "All servers", numbers: totals, most: 0, total: true };
  follow(byId("spread-body"), [...lines, all], (line) => line.key, (line) => new SpreadRow(line));
}
