/** Asks for the figures each second while the page is seen, and with pauses that grow while nobody answers. */

import { ApiError, ask } from "./api.js";
import { byId, setAttribute, setText } from "./dom.js";
import { roughly } from "./format.js";

/** @typedef {import("./views.js").Status} Status */

const EACH = 1000; // ms
const SOON = 500; // ms after the first question without an answer; doubled for each further one
const SLOWEST = 8000;
const SILENT = 2500; // ms without an answer that are worth a word

/** @param {number} ms */
function pause(ms) {
  return new Promise((resolve) => setTimeout(resolve, ms));
}

/** Waits until the page is seen. */
async function seen() {
  while (document.hidden) {
    await new Promise((resolve) => document.addEventListener("visibilitychange", resolve, { once: true }));
  }
}

/** The feed, and the word on how fresh it is. */
export class Feed {
  /**
   * @param {(status: Status) => void} show
   * @param {(silent: boolean) => void} silence told when the answers stop, and when they come again
   */
  constructor(show, silence) {
    this.show = show;
    this.silence = silence;
    this.answered = performance.now();
    this.ever = false;
    this.silent = false;
    this.error = "";
  }

  async run() {
    setInterval(() => this.tellAge(), 500);
    document.addEventListener("visibilitychange", () => {
      this.answered = performance.now(); // nobody was asked while hidden
    });
    let failures = 0;
    for (;;) {
      await seen();
      const began = performance.now();
      const answered = await this.once();
      failures = answered ? 0 : failures + 1;
      const wait = answered ? EACH : Math.min(SOON * 2 ** (failures - 1), SLOWEST);
      await pause(Math.max(0, wait - (performance.now() - began)));
    }
  }

  /** One question; whether it was answered. */
  async once() {
    let status;
    try {
      status = await ask("status");
    } catch (error) {
      if (!(error instanceof ApiError)) throw error;
      this.error = error.status ? error.message : "";
      this.tellAge();
      return false;
    }
    this.answered = performance.now();
    this.ever = true;
    this.error = "";
    this.show(status);
    this.tellAge();
    return true;
  }

  /** Says "live", or since when there is no answer. The figures stay, in grey. */
  tellAge() {
    if (document.hidden) return;
    if (byId("token").open) this.answered = performance.now(); // it waits for a person
    const age = performance.now() - this.answered;
    const silent = age > SILENT;
    const words = this.error || `no answer since ${roughly(age / 1000)}`;
    setText(byId("link-text"), silent ? words : this.ever ? "live" : "connecting");
    setAttribute(byId("link"), "data-tone", silent ? "bad" : this.ever ? "good" : "quiet");
    if (silent === this.silent) return;
    this.silent = silent;
    document.body.classList.toggle("stale", silent);
    this.silence(silent);
  }
}
