/** Questions before something is done, and what came of it. */

import { byId, element, setText } from "./dom.js";

const SHOWN = 8000; // ms that a result stays

/** @type {number | undefined} */
let fading;

/**
 * Says what came of an action: on the screen, and to a screen reader.
 * @param {string} words
 */
export function say(words) {
  const place = byId("said");
  clearTimeout(fading);
  setText(place, words);
  place.classList.add("shown");
  fading = setTimeout(() => {
    place.classList.remove("shown");
    setText(place, "");
  }, SHOWN);
}

/**
 * @typedef {object} Question
 * @property {string} title
 * @property {string[]} lines what will happen
 * @property {string} go the word on the button
 * @property {boolean} [danger]
 * @property {HTMLElement[]} [fields]
 * @property {() => Promise<string>} act does it, and says what came of it
 */

/**
 * Asks before doing. The dialog stays with the error where the action fails.
 * @param {Question} question
 */
export function confirm({ title, lines, go, danger = false, fields = [], act }) {
  const dialog = /** @type {HTMLDialogElement} */ (byId("question"));
  setText(byId("question-title"), title);
  byId("question-lines").replaceChildren(...lines.map((line) => element("li", {}, line)));
  byId("question-fields").replaceChildren(...fields);
  setText(byId("question-error"), "");
  setText(byId("question-go"), go);
  byId("question-go").className = danger ? "danger" : "primary";
  byId("question-cancel").onclick = () => dialog.close();
  byId("question-form").onsubmit = (/** @type {Event} */ event) => {
    event.preventDefault();
    perform(dialog, act);
  };
  enable(true);
  dialog.showModal();
  // A field that has to be filled in comes first; else what does nothing, for an Enter that is held too long.
  const first = fields[0]?.querySelector("input:not([type=checkbox]), select") ?? byId("question-cancel");
  first.focus();
}

/**
 * @param {HTMLDialogElement} dialog
 * @param {() => Promise<string>} act
 */
async function perform(dialog, act) {
  enable(false);
  setText(byId("question-error"), "");
  try {
    const result = await act();
    dialog.close();
    say(result);
  } catch (error) {
    setText(byId("question-error"), error instanceof Error ? error.message : String(error));
  } finally {
    enable(true);
  }
}

/** @param {boolean} able */
function enable(able) {
  // aria-disabled instead of disabled: the button keeps the focus while the answer is under way.
  byId("question-go").setAttribute("aria-disabled", String(!able));
  byId("question-go").type = able ? "submit" : "button";
}
