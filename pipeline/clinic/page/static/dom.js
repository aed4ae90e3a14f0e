// Elements, texts, numbers and times. Foreign text is only ever written as textContent.

export const byId = (id) => document.getElementById(id);

/** Creates an element with properties and children; a string becomes a text node, never markup. */
export function element(tag, properties = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name in made) made[name] = value;
    else made.setAttribute(name, value);
  }
  made.append(...children.filter((child) => child !== null && child !== undefined));
  return made;
}

export function show(target, shown) {
  target.hidden = !shown;
}

/** Focuses the first target that is shown if what had the focus is hidden now: else the keyboard begins at the top again. */
export function keepFocus(focused, ...targets) {
  if (!focused.checkVisibility()) targets.find((each) => each.checkVisibility())?.focus();
}

/** Resolves when the current page is on the screen: the second frame begins after the first was drawn. */
export const painted = () => new Promise((resolve) => requestAnimationFrame(() => requestAnimationFrame(resolve)));

/** Writes a text only if it has changed, so that a screen reader reads it once. What the service puts into backticks becomes code. */
export function say(target, text) {
  const parts = String(text ?? "").split(/`([^`]+)`/); // every second one was in backticks
  if (target.textContent !== parts.join("")) target.replaceChildren(...parts.map((part, index) => (index % 2 ? element("code", {}, part) : part)));
}

/** Isolates foreign text, so that its writing direction does not affect the text around it. */
export const outside = (text) => element("bdi", {}, String(text ?? ""));

/** Converts a DICOM name, FAMILY^GIVEN^MIDDLE^PREFIX^SUFFIX, to normal spelling. */
export function personName(name) {
  const [family, ...others] = String(name ?? "").split("=")[0].split("^");
  const rest = others.filter(Boolean).join(" ");
  return rest ? `${family}, ${rest}` : family;
}

/** Formats a probability in percent with one decimal; never 0 or 100, which no model can know. */
export function percent(share) {
  if (share < 0.001) return "<\u00a00.1\u00a0%";
  if (share > 0.999) return ">\u00a099.9\u00a0%";
  return `${(share * 100).toFixed(1)}\u00a0%`;
}

/** Formats thresholds and shares, which are not a patient's probability, in percent. */
export const roughly = (share) => (share === null ? "–" : `${Number((share * 100).toFixed(1))}\u00a0%`);

const DAY_CHARACTERS = "2021-03-04".length;
const MOMENT = new Intl.DateTimeFormat(undefined, { dateStyle: "medium", timeStyle: "short" });
const DAY = new Intl.DateTimeFormat(undefined, { dateStyle: "medium" });
const CLOCK = new Intl.DateTimeFormat(undefined, { timeStyle: "short" });

/** Formats an ISO 8601 time in the browser's language and, if it has a time zone, in the browser's zone; or a day. */
export function moment(iso) {
  if (iso.length === DAY_CHARACTERS) return day(iso);
  return element("time", { dateTime: iso }, MOMENT.format(new Date(iso)));
}

/** Formats a time of today without its date, and any other time as a date. */
export function briefly(iso) {
  const at = new Date(iso);
  const isToday = at.toDateString() === new Date().toDateString();
  return element("time", { dateTime: iso, title: MOMENT.format(at) }, (isToday ? CLOCK : DAY).format(at));
}

/** Formats a day, YYYY-MM-DD, as local time; JavaScript would read it as UTC. */
export const day = (iso) => element("time", { dateTime: iso }, DAY.format(new Date(`${iso}T00:00`)));

/** Creates a table from rows of texts or elements; the first cell of a row is its heading. */
export function table(caption, headings, rows) {
  const cell = (tag, content, scope) => element(tag, scope ? { scope } : {}, content);
  return element(
    "table",
    {},
    element("caption", { className: "unseen" }, caption),
    element("thead", {}, element("tr", {}, ...headings.map((heading) => cell("th", heading, "col")))),
    element(
      "tbody",
      {},
      ...rows.map(([first, ...others]) =>
        element("tr", {}, cell("th", first, "row"), ...others.map((content) => cell("td", content))),
      ),
    ),
  );
}

/** Fills a description list from pairs of a term and its description. */
export function describe(list, pairs) {
  list.replaceChildren(...pairs.flatMap(([term, text]) => [element("dt", {}, term), element("dd", {}, text)]));
}
