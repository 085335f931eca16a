/** Small curves of the last minutes. They are decoration: the figure stands beside them. */

import { svgElement } from "./dom.js";

const WIDTH = 120;
const HEIGHT = 32;
const SHORTEST = 30; // seconds
const GAP = 5; // seconds without an answer, over which no line is drawn

/**
 * @typedef {{time: number, value: number}} Point
 */

/** One curve over `span` seconds; over fewer, while there are not so many yet. */
export class Sparkline {
  /** @param {number} span */
  constructor(span) {
    this.span = span;
    this.area = svgElement("path", { class: "area" });
    this.line = svgElement("path", { class: "curve" });
    const box = { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: "none" };
    this.node = svgElement("svg", { class: "sparkline", "aria-hidden": "true", ...box }, this.area, this.line);
  }

  /** @param {Point[]} points */
  draw(points) {
    const runs = this.runs(points);
    this.line.setAttribute("d", runs.map((run) => `M${run.join("L")}`).join(""));
    this.area.setAttribute("d", runs.map((run) => closed(run)).join(""));
  }

  /**
   * The points on the canvas, split where there was no answer for a while.
   * @param {Point[]} points
   */
  runs(points) {
    const end = points.at(-1)?.time ?? 0;
    const span = Math.min(this.span, Math.max(SHORTEST, end - (points[0]?.time ?? end)));
    const top = Math.max(...points.map((point) => point.value), Number.MIN_VALUE);
    /** @type {string[][]} */
    const runs = [];
    let before = -Infinity;
    for (const { time, value } of points) {
      if (time - before > GAP) runs.push([]);
      const x = WIDTH * (1 - (end - time) / span);
      const y = HEIGHT - 2 - (HEIGHT - 5) * (value / top);
      runs.at(-1)?.push(`${x.toFixed(1)} ${y.toFixed(1)}`);
      before = time;
    }
    return runs;
  }
}

/**
 * The area under a run.
 * @param {string[]} run
 */
function closed(run) {
  const first = run[0].split(" ")[0];
  const last = (run.at(-1) ?? run[0]).split(" ")[0];
  return `M${first} ${HEIGHT}L${run.join("L")}L${last} ${HEIGHT}Z`;
}
