/** Workers, routes and listeners. */

import { badge, byId, element, follow, setAttribute, setText, tableRow, twoLines } from "./dom.js";
import { bytes, count, date, milliseconds, percent, plural, rate, roughly } from "./format.js";
import { counters } from "./rates.js";

/** @typedef {import("./views.js").Worker} Worker */
/** @typedef {import("./views.js").Route} Route */
/** @typedef {import("./views.js").Listener} Listener */
/** @typedef {import("./views.js").Certificate} Certificate */

const WORKER_COLUMNS = {
  worker: "Worker",
  connections: "Conns",
  tunnels: "Tunnels",
  requests: "Req/s",
  lag: "Loop lag",
  cpu: "CPU",
  memory: "Memory",
};
const ROUTE_COLUMNS = {
  route: "Route",
  requests: "Req/s",
  errors: "5xx/s",
  flight: "In flight",
  tunnels: "Tunnels",
  messages: "Messages/s",
};
const LISTENER_COLUMNS = {
  listener: "Listener",
  connections: "Conns",
  accepted: "New/s",
  rejected: "Rejected",
  certificates: "Certificates",
};

const LATE = 0.5; // seconds of loop lag that are worth a colour; a tick comes each 0.1 s
const DAY = 86_400;
const RENEW = 14 * DAY; // a certificate that ends sooner is worth a warning, as in the verdict

/** @param {Worker} worker @returns {[string, string]} tone and shape */
function workerLook(worker) {
  if (worker.wedged) return ["bad", "down"];
  if (worker.state === "serving") return ["good", "up"];
  return worker.state === "leaving" ? ["info", "drain"] : ["info", "starting"];
}

/** One worker's row. */
class WorkerRow {
  constructor() {
    const { node, cells } = tableRow(WORKER_COLUMNS, ["worker"]);
    this.node = node;
    this.cells = cells;
    this.state = badge();
    const first = element("span", { class: "first" });
    this.slot = element("span", { class: "slot" });
    first.append(this.slot, this.state.node);
    this.pid = element("span", { class: "second" });
    cells.worker.append(first, this.pid);
  }

  /** @param {{worker: Worker, time: number}} what */
  update({ worker, time }) {
    const { cells } = this;
    const [tone, picture] = workerLook(worker);
    const key = `${worker.slot} ${worker.pid}`;
    setAttribute(this.node, "data-tone", tone);
    setText(this.slot, worker.slot);
    this.state.show(picture, tone, worker.wedged ? "wedged" : worker.state);
    setText(this.pid, `pid ${worker.pid}, up ${roughly(worker.uptime)}`);
    setAttribute(this.pid, "title", worker.keeper_pid ? `its keeper has pid ${worker.keeper_pid}` : "it has no keeper");
    setText(cells.connections, count(worker.connections));
    setText(cells.tunnels, count(worker.tunnels));
    setAttribute(cells.tunnels, "title", `${count(worker.crash_safe)} would outlive it`);
    setText(cells.requests, rate(counters.rate(`worker ${worker.slot}`, time, worker.requests)));
    setText(cells.lag, milliseconds(worker.loop_lag));
    setAttribute(cells.lag, "data-tone", worker.loop_lag >= LATE ? "warn" : "");
    setText(cells.cpu, percent(counters.rate(`cpu ${key}`, time, worker.cpu_seconds)));
    setText(cells.memory, bytes(worker.memory_bytes));
  }
}

/** One route's row. */
class RouteRow {
  constructor() {
    const { node, cells } = tableRow(ROUTE_COLUMNS, ["route"]);
    this.node = node;
    this.cells = cells;
    this.route = twoLines(cells.route);
  }

  /** @param {{route: Route, time: number}} what */
  update({ route, time }) {
    const { cells } = this;
    const key = route.name;
    const failing = counters.rate(`route errors ${key}`, time, route.errors);
    this.route(route.name, `${route.host ?? "any host"}${route.path ?? ""} → ${route.pool}`);
    setText(cells.requests, rate(counters.rate(`route ${key}`, time, route.requests)));
    setText(cells.errors, rate(failing));
    setAttribute(cells.errors, "data-tone", failing ? "warn" : "");
    setText(cells.flight, count(route.in_flight));
    setText(cells.tunnels, count(route.tunnels));
    const messages = route.client_messages + route.server_messages;
    setText(cells.messages, rate(counters.rate(`route messages ${key}`, time, messages)));
  }
}

/**
 * @param {Certificate} certificate
 * @param {number} time
 * @returns {[string, string, string]} tone, shape, words
 */
function certificateWords({ not_after: end }, time) {
  if (end <= time) return ["bad", "down", `expired ${date(end)}`];
  const left = `${plural(Math.floor((end - time) / DAY), "day")} left, ${date(end)}`;
  return end - time < RENEW ? ["warn", "ejected", left] : ["good", "up", left];
}

class CertificateRow {
  /** @param {{certificate: Certificate}} what */
  constructor({ certificate }) {
    this.badge = badge();
    const hosts = certificate.hosts.join(", ") || certificate.name;
    this.node = element("li", {}, element("span", { class: "first" }, hosts), this.badge.node);
  }

  /** @param {{certificate: Certificate, time: number}} what */
  update({ certificate, time }) {
    const [tone, picture, words] = certificateWords(certificate, time);
    this.badge.show(picture, tone, words);
  }
}

/** One listener's row. */
class ListenerRow {
  constructor() {
    const { node, cells } = tableRow(LISTENER_COLUMNS, ["listener", "certificates"]);
    this.node = node;
    this.cells = cells;
    this.listener = twoLines(cells.listener);
    this.none = element("span", { class: "second" });
    this.certificates = element("ul", { class: "certificates" });
    cells.certificates.append(this.certificates, this.none);
  }

  /** @param {{listener: Listener, time: number}} what */
  update({ listener, time }) {
    const { cells } = this;
    const reasons = Object.entries(listener.rejected_by_reason).map(([reason, number]) => `${reason}: ${count(number)}`);
    this.listener(listener.name, listener.bind.join(", "));
    setText(cells.connections, count(listener.connections));
    setText(cells.accepted, rate(counters.rate(`listener ${listener.name}`, time, listener.accepted)));
    setText(cells.rejected, count(listener.rejected));
    setAttribute(cells.rejected, "title", reasons.join(", "));
    setText(this.none, listener.certificates.length ? "" : listener.tls ? "none loaded" : "plain text");
    const items = listener.certificates.map((certificate) => ({ certificate, time }));
    const keyOf = (/** @type {typeof items[0]} */ { certificate }) => `${certificate.name} ${certificate.hosts.join()}`;
    follow(this.certificates, items, keyOf, (item) => new CertificateRow(item));
  }
}

/** @param {import("./views.js").Status} status */
export function showMachine(status) {
  const { time } = status;
  const body = byId("worker-table").tBodies[0];
  const workers = status.workers.map((worker) => ({ worker, time }));
  follow(body, workers, ({ worker }) => String(worker.slot), () => new WorkerRow());
  const routes = status.routes.map((route) => ({ route, time }));
  follow(byId("route-rows"), routes, ({ route }) => route.name, () => new RouteRow());
  const listeners = status.listeners.map((listener) => ({ listener, time }));
  follow(byId("listener-rows"), listeners, ({ listener }) => listener.name, () => new ListenerRow());
  setText(byId("restarts"), restartWords(status));
  setText(byId("moves"), moveWords(status));
}

/**
 * What became of tunnels that had to change hands, and how many are being closed.
 * @param {import("./views.js").Status} status
 */
function moveWords({ migrations, workers }) {
  const kept = Object.entries(migrations).map(([reason, results]) => ({ reason, number: results.ok ?? 0 }));
  const total = kept.reduce((all, { number }) => all + number, 0);
  const lost = Object.values(migrations).reduce((all, results) => all + (results.unproved ?? 0), 0);
  const closing = workers.reduce((all, worker) => all + worker.closing, 0);
  const reasons = kept.filter(({ number }) => number).map(({ reason, number }) => `${reason} ${count(number)}`);
  const moved = total || lost ? `${count(total)} moved since the start${total ? ` (${reasons.join(", ")})` : ""}, ${count(lost)} lost` : "";
  return [moved, closing ? `${count(closing)} wait for their turn to be closed` : ""].filter(Boolean).join(". ");
}

/** @param {import("./views.js").Status} status */
function restartWords({ restarts, keeper_restarts: keepers, workers, workers_wanted: wanted }) {
  const total = sumOf(restarts);
  const reasons = Object.entries(restarts).filter(([, number]) => number).map(([reason, number]) => `${reason} ${number}`);
  const words = total ? `${plural(total, "restart")} since the start (${reasons.join(", ")})` : "No restarts since the start";
  const kept = sumOf(keepers) ? `, ${count(sumOf(keepers))} of keepers` : "";
  return workers.length === wanted ? words + kept : `${workers.length} of ${wanted} workers run. ${words}${kept}`;
}

/** @param {Record<string, number>} counts */
function sumOf(counts) {
  return Object.values(counts).reduce((all, number) => all + number, 0);
}
