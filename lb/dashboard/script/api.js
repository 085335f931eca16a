/** Talking to the admin API: the token, errors in words, and the stream of events. */

import { byId, setText } from "./dom.js";

const TIMEOUT = 5000; // ms
const TOKEN = "shardlb-token"; // in sessionStorage: this tab alone
const MAX_EVENT = 65_536; // characters of one event's lines

/** Something the API refused, or no answer at all (`status` 0). */
export class ApiError extends Error {
  /**
   * @param {string} message
   * @param {number} status
   */
  constructor(message, status) {
    super(message);
    this.status = status;
  }
}

/**
 * Keeps the token of a link with #token=..., and takes it out of the address bar, for nobody to read or to copy.
 * @returns {boolean} whether there was one
 */
function takeToken() {
  const token = new URLSearchParams(location.hash.slice(1)).get("token");
  if (token === null) return false;
  if (/^[!-~]+$/.test(token)) sessionStorage.setItem(TOKEN, token); // else no header could bear it
  history.replaceState(null, "", location.pathname + location.search);
  return true;
}

takeToken();
// Such a link opened in a tab that shows the dashboard already: only the fragment changes, nothing is loaded.
addEventListener("hashchange", () => {
  if (takeToken()) location.reload();
});

/** @type {Promise<void> | null} */
let prompt = null;

/**
 * Asks for the token; all who need one wait for the same answer.
 * @param {string} refused the token that was not taken, or ""
 * @returns {Promise<void>}
 */
function askToken(refused) {
  prompt ??= new Promise((resolve) => {
    const dialog = /** @type {HTMLDialogElement} */ (byId("token"));
    const form = /** @type {HTMLFormElement} */ (byId("token-form"));
    const input = /** @type {HTMLInputElement} */ (byId("token-input"));
    setText(byId("token-error"), refused ? "That token is not the right one." : "");
    input.value = "";
    dialog.oncancel = (event) => event.preventDefault();
    form.onsubmit = (event) => {
      event.preventDefault();
      sessionStorage.setItem(TOKEN, input.value.trim());
      dialog.close();
      prompt = null;
      resolve();
    };
    dialog.showModal();
  });
  return prompt;
}

/**
 * One exchange, with the token. Waits for a token where one is needed.
 * @param {string} path below /api/v1
 * @param {RequestInit} options
 * @param {() => AbortSignal} signal made anew for each try, so that no time runs while a person types
 * @returns {Promise<Response>}
 */
async function exchange(path, options, signal) {
  for (;;) {
    const token = sessionStorage.getItem(TOKEN) ?? "";
    const headers = { ...options.headers, ...(token && { Authorization: `Bearer ${token}` }) };
    const response = await fetch(`/api/v1/${path}`, { cache: "no-store", ...options, headers, signal: signal() });
    if (response.status !== 401) return response;
    if (token === (sessionStorage.getItem(TOKEN) ?? "")) await askToken(token);
  }
}

/**
 * Asks, and decodes the JSON of the answer. Throws `ApiError`.
 * @param {string} path
 * @param {RequestInit} [options]
 * @returns {Promise<any>}
 */
export async function ask(path, options = {}) {
  let response;
  try {
    response = await exchange(path, options, () => AbortSignal.timeout(TIMEOUT));
    if (response.ok) return await response.json();
  } catch (error) {
    throw new ApiError(`The control process did not answer: ${wordsOf(error)}.`, 0);
  }
  throw new ApiError(await problemOf(response), response.status);
}

/**
 * Sends a JSON body; `ask` otherwise.
 * @param {"POST" | "PATCH"} method
 * @param {string} path
 * @param {object} body
 */
export function send(method, path, body) {
  const headers = { "Content-Type": "application/json" };
  return ask(path, { method, headers, body: JSON.stringify(body) });
}

/** @param {unknown} error */
function wordsOf(error) {
  if (!(error instanceof Error)) return String(error);
  return error.name === "TimeoutError" ? `no answer within ${TIMEOUT / 1000} s` : error.message.toLowerCase();
}

/**
 * What application/problem+json says (RFC 9457).
 * @param {Response} response
 */
async function problemOf(response) {
  try {
    const problem = await response.json();
    return [problem.title, problem.detail].filter(Boolean).join(": ") || `Refused with ${response.status}.`;
  } catch {
    return `Refused with ${response.status} ${response.statusText}`.trim();
  }
}

/**
 * The events after the one with the number `after`, as they come (text/event-stream by fetch, which can send
 * the token). Ends when the connection does.
 * @param {number} after
 * @param {AbortSignal} signal
 * @returns {AsyncGenerator<import("./views.js").Happening>}
 */
export async function* eventStream(after, signal) {
  const headers = { Accept: "text/event-stream" };
  const response = await exchange(`events?after=${after}`, { headers }, () => signal);
  if (!response.ok || !response.body) throw new ApiError(await problemOf(response), response.status);
  let rest = "";
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    const blocks = (rest + value).replaceAll("\r\n", "\n").split("\n\n");
    rest = (blocks.pop() ?? "").slice(-MAX_EVENT);
    for (const block of blocks) {
      const data = dataOf(block);
      if (data) yield JSON.parse(data);
    }
  }
}

/**
 * The data of one server-sent event; "" of a heartbeat.
 * @param {string} block
 */
function dataOf(block) {
  const lines = block.split("\n").filter((line) => line.startsWith("data:"));
  return lines.map((line) => line.slice(5).trimStart()).join("\n");
}
