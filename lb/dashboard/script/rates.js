/** Rates from counters: the API counts, and whoever wants rates takes differences. */

const WINDOW = 3; // seconds that a shown rate is the mean of

/** One figure over the last while. */
export class Trail {
  /** @param {number} span seconds that are kept */
  constructor(span) {
    this.span = span;
    /** @type {{time: number, value: number}[]} */
    this.points = [];
  }

  /**
   * Adds what is so at `time`. A time that does not go on is no new answer.
   * @param {number} time
   * @param {number} value
   */
  add(time, value) {
    const last = this.points.at(-1);
    if (last && time <= last.time) {
      if (time > last.time - WINDOW) return;
      this.points = []; // the clock was set back
    }
    this.points.push({ time, value });
    const first = this.points.findIndex((point) => point.time >= time - this.span);
    if (first > 0) this.points.splice(0, first);
  }
}

/** A counter, and how fast it grows. */
export class Counter extends Trail {
  /**
   * @param {number} time
   * @param {number} value
   */
  add(time, value) {
    const last = this.points.at(-1);
    if (last && value < last.value) this.points.length = 0; // the load balancer was started anew
    super.add(time, value);
  }

  /**
   * Growth a second up to the point `index` (default: now), as the mean of a few seconds; `null` before the
   * second answer.
   * @param {number} [index]
   * @returns {number | null}
   */
  rate(index = this.points.length - 1) {
    const end = this.points[index];
    let from = index - 1;
    if (!end || from < 0) return null;
    while (from > 0 && this.points[from - 1].time >= end.time - WINDOW) from -= 1;
    const start = this.points[from];
    return (end.value - start.value) / (end.time - start.time);
  }

  /** The rates at all points. */
  rates() {
    return this.points.slice(1).map((point, index) => ({ time: point.time, value: this.rate(index + 1) ?? 0 }));
  }
}

/** Counters by name; those that are not fed any more are forgotten. */
export class Counters {
  constructor() {
    /** @type {Map<string, Counter>} */
    this.all = new Map();
  }

  /**
   * Feeds the counter `name` and returns its rate.
   * @param {string} name
   * @param {number} time
   * @param {number} value
   */
  rate(name, time, value) {
    let counter = this.all.get(name);
    if (!counter) this.all.set(name, (counter = new Counter(4 * WINDOW)));
    counter.add(time, value);
    return counter.rate();
  }

  /** @param {number} time forget what was not fed for a minute before it */
  forget(time) {
    for (const [name, counter] of this.all) {
      if ((counter.points.at(-1)?.time ?? 0) < time - 60) this.all.delete(name);
    }
  }
}

/** The counters behind the rates in tables. */
export const counters = new Counters();
