/** The verdict on top, and the figures of the whole with their curves. */

import { byId, element, follow, setAttribute, setText } from "./dom.js";
import { UNKNOWN, bytes, count, date, duration, percent, plural, rate, roughly, timeOfDay } from "./format.js";
import { Counter, Trail } from "./rates.js";
import { Sparkline } from "./sparkline.js";

/** @typedef {import("./views.js").Status} Status */
/** @typedef {import("./views.js").Route} Route */

const SPAN = 180; // seconds that the curves show

/**
 * The whole in a word: good, with problems, or not serving.
 * @param {Status} status
 */
function verdictOf(status) {
  if (!status.ready) return { tone: "bad", picture: "down" };
  if (status.problems.length) return { tone: "warn", picture: "ejected" };
  return { tone: "good", picture: "up" };
}

/** @param {Status} status */
function verdictWords(status) {
  const word = status.state.charAt(0).toUpperCase() + status.state.slice(1);
  const ready = status.ready ? "" : ", not ready";
  const problems = status.problems.length ? plural(status.problems.length, "problem") : "all is well";
  return `${word}${ready}: ${problems}`;
}

/**
 * The title of the tab, where problems are seen from afar.
 * @param {Status} status
 */
export function titleOf(status) {
  if (!status.ready) return `✕ ${status.state}, not ready · shardlb`;
  return status.problems.length ? `▲ ${plural(status.problems.length, "problem")} · shardlb` : "shardlb";
}

/** @param {Status} status */
function reloadWords({ last_reload: reload, time }) {
  if (!reload) return "none";
  const ago = roughly(time - reload.at);
  return reload.ok ? `${ago} ago` : `failed ${ago} ago`;
}

/** @param {Status} status */
export function showVerdict(status) {
  const { tone, picture } = verdictOf(status);
  setAttribute(byId("verdict"), "data-tone", tone);
  setAttribute(byId("verdict-shape"), "href", `#shape-${picture}`);
  setText(byId("verdict-state"), verdictWords(status));
  const problems = status.problems.map((text, index) => ({ text, index }));
  follow(byId("problems"), problems, ({ index }) => String(index), () => {
    const node = element("li");
    return { node, update: ({ text }) => setText(node, text) };
  });
  setText(byId("fact-uptime"), duration(status.uptime));
  setText(byId("fact-generation"), count(status.generation));
  setText(byId("fact-reload"), reloadWords(status));
  setText(byId("fact-version"), [status.version, status.form].filter(Boolean).join(", "));
  const reload = status.last_reload;
  const when = reload ? `${date(reload.at)} ${timeOfDay(reload.at)}` : "";
  setAttribute(byId("fact-reload"), "title", reload && !reload.ok ? `${when}: ${reload.error}` : when);
}

/** One figure: a name, a number, a curve, and a line of smaller print. */
class Figure {
  /** @param {string} name */
  constructor(name) {
    this.value = element("dd", { class: "figure-value" }, UNKNOWN);
    this.note = element("dd", { class: "figure-note" }, "\u00a0");
    this.curve = new Sparkline(SPAN);
    const list = element("dl", {}, element("dt", {}, name), this.value, this.note);
    this.node = element("div", { class: "card figure" }, list, this.curve.node);
  }

  /**
   * @param {string} value
   * @param {string} note
   * @param {{time: number, value: number}[]} points
   * @param {string} [tone]
   */
  show(value, note, points, tone = "") {
    setText(this.value, value);
    setText(this.note, note || "\u00a0");
    setAttribute(this.node, "data-tone", tone);
    this.curve.draw(points);
  }
}

/**
 * The sum of one or more fields over all routes.
 * @param {Route[]} routes
 * @param {...("requests" | "errors" | "tunnels" | "in_flight" | "client_messages" | "server_messages" | "client_bytes" | "server_bytes")} fields
 */
function sum(routes, ...fields) {
  return routes.reduce((total, route) => fields.reduce((all, field) => all + route[field], total), 0);
}

/** The figures of the whole. */
export class Figures {
  constructor() {
    this.requests = new Counter(SPAN);
    this.errors = new Counter(SPAN);
    this.messages = new Counter(SPAN);
    this.fromClients = new Counter(SPAN);
    this.bytes = new Counter(SPAN);
    this.tunnels = new Trail(SPAN);
    this.connections = new Trail(SPAN);
    this.cards = {
      requests: new Figure("Requests/s"),
      errors: new Figure("Errors (5xx)"),
      tunnels: new Figure("Tunnels"),
      messages: new Figure("Messages/s"),
      bytes: new Figure("Tunnel bytes/s"),
      connections: new Figure("Connections"),
    };
    byId("figures").append(...Object.values(this.cards).map((card) => card.node));
  }

  /** @param {Status} status */
  show(status) {
    this.showRequests(status);
    this.showTunnels(status);
    const connections = status.listeners.reduce((all, listener) => all + listener.connections, 0);
    this.connections.add(status.time, connections);
    const queued = status.pools.reduce((all, pool) => all + pool.queued, 0);
    this.cards.connections.show(count(connections), `${count(queued)} requests queued`, this.connections.points);
  }

  /** @param {Status} status */
  showRequests({ routes, time }) {
    this.requests.add(time, sum(routes, "requests"));
    this.errors.add(time, sum(routes, "errors"));
    const requests = this.requests.rate();
    const errors = this.errors.rate();
    this.cards.requests.show(rate(requests), `${count(sum(routes, "in_flight"))} in flight`, this.requests.rates());
    const share = requests === null || errors === null ? null : requests > 0 ? errors / requests : 0;
    this.cards.errors.show(percent(share), `${rate(errors)} a second`, this.errors.rates(), share ? "warn" : "");
  }

  /** @param {Status} status */
  showTunnels({ routes, workers, time }) {
    const tunnels = sum(routes, "tunnels");
    this.tunnels.add(time, tunnels);
    this.messages.add(time, sum(routes, "client_messages", "server_messages"));
    this.fromClients.add(time, sum(routes, "client_bytes"));
    this.bytes.add(time, sum(routes, "client_bytes", "server_bytes"));
    const each = tunnels ? (this.messages.rate() ?? 0) / tunnels : 0;
    const safe = workers.reduce((all, worker) => all + worker.crash_safe, 0);
    this.cards.tunnels.show(count(tunnels), `${count(safe)} of them crash-safe`, this.tunnels.points);
    this.cards.messages.show(rate(this.messages.rate()), `${rate(each)} per tunnel`, this.messages.rates());
    const clients = bytes(this.fromClients.rate());
    this.cards.bytes.show(bytes(this.bytes.rate()), `${clients} from clients`, this.bytes.rates());
  }
}
