/** Figures as people read them. A dash stands for what is not known (yet). */

export const UNKNOWN = "–";

const whole = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });
const oneDigit = new Intl.NumberFormat("en", { minimumFractionDigits: 1, maximumFractionDigits: 1 });
const clock = new Intl.DateTimeFormat("en-GB", { hour: "2-digit", minute: "2-digit", second: "2-digit" });
const day = new Intl.DateTimeFormat("en-CA", { year: "numeric", month: "2-digit", day: "2-digit" });

/** @param {number} value */
export function count(value) {
  return whole.format(value);
}

/**
 * Something a second; small ones with a decimal.
 * @param {number | null} value
 */
export function rate(value) {
  if (value === null) return UNKNOWN;
  if (value === 0) return "0";
  if (value < 0.05) return "<0.1";
  if (value < 9.95) return oneDigit.format(value);
  if (value < 99_950) return whole.format(value);
  return `${oneDigit.format(value / 1000)}k`;
}

/**
 * A share between 0 and 1.
 * @param {number | null} share
 */
export function percent(share) {
  if (share === null) return UNKNOWN;
  if (share > 0 && share < 0.0005) return "<0.1 %";
  return share > 0 && share < 0.0995 ? `${oneDigit.format(share * 100)} %` : `${whole.format(share * 100)} %`;
}

/**
 * A size in bytes.
 * @param {number | null} value
 */
export function bytes(value) {
  if (value === null) return UNKNOWN;
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let unit = 0;
  while (value >= 1000 && unit < units.length - 1) {
    value /= 1024;
    unit += 1;
  }
  const digits = unit > 0 && value < 9.95 ? oneDigit.format(value) : whole.format(value);
  return `${digits} ${units[unit]}`;
}

/**
 * A span of time: its two largest units.
 * @param {number} seconds
 */
export function duration(seconds) {
  if (seconds < 60) return `${Math.max(0, Math.floor(seconds))} s`;
  const minutes = Math.floor(seconds / 60);
  if (minutes < 60) return `${minutes} min ${Math.floor(seconds % 60)} s`;
  const hours = Math.floor(minutes / 60);
  if (hours < 24) return `${hours} h ${minutes % 60} min`;
  return `${Math.floor(hours / 24)} d ${hours % 24} h`;
}

/**
 * A span of time in its largest unit, for places with little room.
 * @param {number} seconds
 */
export function roughly(seconds) {
  if (seconds < 60) return `${Math.max(0, Math.floor(seconds))} s`;
  if (seconds < 3600) return `${Math.floor(seconds / 60)} min`;
  if (seconds < 48 * 3600) return `${Math.floor(seconds / 3600)} h`;
  return `${Math.floor(seconds / 86400)} d`;
}

/**
 * A short time: how long a check took, how late a loop is.
 * @param {number} seconds
 */
export function milliseconds(seconds) {
  if (seconds >= 10) return duration(seconds);
  if (seconds >= 1) return `${oneDigit.format(seconds)} s`;
  return seconds >= 0.00995 ? `${whole.format(seconds * 1000)} ms` : `${oneDigit.format(seconds * 1000)} ms`;
}

/** @param {number} unixSeconds */
export function timeOfDay(unixSeconds) {
  return clock.format(unixSeconds * 1000);
}

/** @param {number} unixSeconds */
export function date(unixSeconds) {
  return day.format(unixSeconds * 1000);
}

/**
 * "1 tunnel", "2 tunnels".
 * @param {number} number
 * @param {string} noun
 */
export function plural(number, noun) {
  return `${count(number)} ${noun}${number === 1 ? "" : "s"}`;
}
