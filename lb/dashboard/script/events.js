/** What happened, live and newest first. */

import { eventStream } from "./api.js";
import { byId, element, shape } from "./dom.js";
import { date, timeOfDay } from "./format.js";

/** @typedef {import("./views.js").Happening} Happening */

const MOST = 200;
const SOONEST = 1000; // ms before the stream is opened again; doubled up to LATEST
const LATEST = 15_000;

/** @type {[RegExp, string, string][]} pattern of the kind, tone, shape */
const LOOKS = [
  [/ejected|ended/, "warn", "ejected"],
  [/down|failed|refused|wedged/, "bad", "down"],
  [/up$|returned|serves|succeeded|restored|moved|^upgraded/, "good", "up"],
  [/admin/, "info", "maint"],
];

/** @param {string} kind */
function lookOf(kind) {
  const look = LOOKS.find(([pattern]) => pattern.test(kind));
  return look ? { tone: look[1], picture: look[2] } : { tone: "quiet", picture: "note" };
}

/** @param {Happening} event */
function makeItem(event) {
  const { tone, picture } = lookOf(event.kind);
  const iso = new Date(event.at * 1000).toISOString();
  const time = element("time", { datetime: iso, title: `${date(event.at)} ${timeOfDay(event.at)}` }, timeOfDay(event.at));
  const kind = element("span", { class: "badge", "data-tone": tone }, shape(picture), element("span", {}, event.kind));
  return element("li", {}, time, kind, element("span", { class: "event-text" }, event.text));
}

/** Follows the stream, and opens it again where it ends. */
export class Events {
  constructor() {
    this.last = 0;
    this.control = 0;
    this.wait = SOONEST;
    this.abort = new AbortController();
    this.wake = () => {};
    /** @type {Set<string>} */
    this.seen = new Set();
  }

  /**
   * A new control process numbers its events from one again.
   * @param {import("./views.js").Status} status
   */
  watch({ control_pid: pid }) {
    if (pid === this.control) return;
    const first = this.control === 0;
    this.control = pid;
    if (first) {
      void this.run();
      return;
    }
    this.last = 0;
    this.wait = SOONEST;
    this.abort.abort();
    this.wake();
  }

  async run() {
    for (;;) {
      await this.once();
      await this.rest();
      this.wait = Math.min(this.wait * 2, LATEST);
    }
  }

  /** Waits, at most until a new control process is seen. */
  rest() {
    return new Promise((resolve) => {
      this.wake = () => resolve(undefined);
      setTimeout(resolve, this.wait);
    });
  }

  /** Reads the stream until it ends; that it ended is no news, as the feed of figures tells of silence. */
  async once() {
    this.abort = new AbortController();
    try {
      for await (const event of eventStream(this.last, this.abort.signal)) {
        this.wait = SOONEST;
        this.add(event);
      }
    } catch (error) {
      console.debug("events:", error);
    }
  }

  /** @param {Happening} event */
  add(event) {
    const key = `${event.id} ${event.at}`;
    this.last = event.id;
    if (this.seen.has(key)) return;
    this.seen.add(key);
    const list = byId("event-list");
    list.prepend(makeItem(event));
    byId("no-events").hidden = true;
    while (list.childElementCount > MOST) list.lastElementChild.remove();
    if (this.seen.size > 2 * MOST) this.seen = new Set([...this.seen].slice(-MOST));
  }
}
