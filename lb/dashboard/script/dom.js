/** Making elements, and changing them in place. Strings become text nodes and never markup. */

/**
 * The element of the page with this id.
 * @param {string} id
 * @returns {any}
 */
export function byId(id) {
  const found = document.getElementById(id);
  if (!found) throw new Error(`the page has no #${id}`);
  return found;
}

/**
 * A new element.
 * @param {string} tag
 * @param {Record<string, string>} [attributes]
 * @param {...(Node | string)} children
 * @returns {any}
 */
export function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children);
  return made;
}

/**
 * A new SVG element.
 * @param {string} tag
 * @param {Record<string, string>} [attributes]
 * @param {...Node} children
 */
export function svgElement(tag, attributes = {}, ...children) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children);
  return made;
}

/**
 * One of the shapes that index.html defines. It is decoration: the word stands beside it.
 * @param {string} name
 */
export function shape(name) {
  const use = svgElement("use", { href: `#shape-${name}` });
  return svgElement("svg", { class: "shape", "aria-hidden": "true" }, use);
}

/**
 * Sets the text where it differs, so that nothing is laid out, or read aloud, anew without need.
 * @param {Node} node
 * @param {string | number} value
 */
export function setText(node, value) {
  const text = String(value);
  const only = node.firstChild;
  if (only instanceof Text && only === node.lastChild) {
    if (only.data !== text) only.data = text;
  } else if (node.textContent !== text) node.textContent = text;
}

/**
 * Sets an attribute where it differs.
 * @param {Element} node
 * @param {string} name
 * @param {string} value
 */
export function setAttribute(node, name, value) {
  if (node.getAttribute(name) !== value) node.setAttribute(name, value);
}

/**
 * A word with a shape and a colour.
 * @returns {{node: HTMLElement, show: (shapeName: string, tone: string, word: string) => void}}
 */
export function badge() {
  const word = element("span");
  const picture = shape("unchecked");
  const node = element("span", { class: "badge" }, picture, word);
  const show = (/** @type {string} */ shapeName, /** @type {string} */ tone, /** @type {string} */ text) => {
    setAttribute(/** @type {Element} */ (picture.firstChild), "href", `#shape-${shapeName}`);
    setAttribute(node, "data-tone", tone);
    setText(word, text);
  };
  return { node, show };
}

/**
 * @template Item
 * @typedef {{node: HTMLElement, update: (item: Item) => void}} Row
 */

/** @type {WeakMap<Element, Map<string, Row<any>>>} */
const rowsOf = new WeakMap();

/**
 * Makes the children of `parent` follow `items`: rows are made once, updated in place, and moved or removed
 * only where they must be, so that focus and scroll positions stay.
 * @template Item
 * @param {Element} parent
 * @param {Item[]} items
 * @param {(item: Item) => string} keyOf unique in `items`
 * @param {(item: Item) => Row<Item>} create
 */
export function follow(parent, items, keyOf, create) {
  const rows = rowsOf.get(parent) ?? new Map();
  rowsOf.set(parent, rows);
  removeRows(rows, new Set(items.map(keyOf)));
  let place = parent.firstElementChild;
  for (const item of items) {
    const key = keyOf(item);
    const row = rows.get(key) ?? create(item);
    rows.set(key, row);
    row.update(item);
    if (place && row.node === place) place = place.nextElementSibling;
    else if (row.node.contains(document.activeElement)) place = moveOthers(parent, row.node, place);
    else parent.insertBefore(row.node, place);
  }
}

/**
 * Brings `node` to `place` by moving those between them to the end: a moved element loses the focus.
 * @param {Element} parent
 * @param {Element} node
 * @param {Element | null} place
 * @returns {Element | null} the next place
 */
function moveOthers(parent, node, place) {
  while (place && place !== node) {
    const next = place.nextElementSibling;
    parent.append(place);
    place = next;
  }
  return node.nextElementSibling;
}

/**
 * @param {Map<string, Row<any>>} rows
 * @param {Set<string>} wanted
 */
function removeRows(rows, wanted) {
  for (const [key, row] of rows) {
    if (wanted.has(key)) continue;
    row.node.remove();
    rows.delete(key);
  }
}

/**
 * A row of a table whose cells are named; the first is its heading.
 * @param {Record<string, string>} names cell names and what their column is called
 * @param {string[]} words the cells that hold words; the others hold numbers
 * @returns {{node: HTMLElement, cells: Record<string, HTMLElement>}}
 */
export function tableRow(names, words) {
  /** @type {Record<string, HTMLElement>} */
  const cells = {};
  const node = element("tr", { role: "row" });
  Object.entries(names).forEach(([name, label], index) => {
    const look = { class: words.includes(name) ? `cell-${name}` : `cell-${name} number`, "data-label": label };
    const cell = index ? element("td", { role: "cell", ...look }) : element("th", { role: "rowheader", scope: "row", ...look });
    cells[name] = cell;
    node.append(cell);
  });
  return { node, cells };
}

/**
 * Two lines in a cell: what it says, and the smaller print.
 * @param {HTMLElement} cell
 * @returns {(first: string, second: string) => void}
 */
export function twoLines(cell) {
  const first = element("span", { class: "first" });
  const second = element("span", { class: "second" });
  cell.append(first, second);
  return (one, two) => {
    setText(first, one);
    setText(second, two);
  };
}
