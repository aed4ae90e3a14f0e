// Elements, texts, numbers and times. Text from outside reaches the page through textContent alone.

export const byId = (id) => document.getElementById(id);

/** An element with properties and children; a string becomes a text node, never markup. */
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

/** What is in the page by now is on the screen: the second frame begins after the first was drawn. */
export const painted = () => new Promise((resolve) => requestAnimationFrame(() => requestAnimationFrame(resolve)));

/** Writes only what is new, so that a screen reader says it once. */
export function say(target, text) {
  if (target.textContent !== text) target.textContent = text;
}

/** What others wrote, on its own: its direction of writing does not turn what stands beside it. */
export const outside = (text) => element("bdi", {}, String(text ?? ""));

/** A name as DICOM has it, FAMILY^GIVEN^MIDDLE^PREFIX^SUFFIX, as a person writes it. */
export function personName(name) {
  const [family, ...others] = String(name ?? "").split("=")[0].split("^");
  const rest = others.filter(Boolean).join(" ");
  return rest ? `${family}, ${rest}` : family;
}

/** In percent with one decimal; never 0 or 100, which no model can know. */
export function percent(share) {
  if (share < 0.001) return "< 0.1 %";
  if (share > 0.999) return "> 99.9 %";
  return `${(share * 100).toFixed(1)} %`;
}

/** In whole percent, for thresholds and shares that are no probability of a patient. */
export const roughly = (share) => (share === null ? "–" : `${Number((share * 100).toFixed(1))} %`);

const MOMENT = new Intl.DateTimeFormat(undefined, { dateStyle: "medium", timeStyle: "short" });
const DAY = new Intl.DateTimeFormat(undefined, { dateStyle: "medium" });
const CLOCK = new Intl.DateTimeFormat(undefined, { timeStyle: "short" });

/** An ISO 8601 time in the browser's language and, where it has a zone, in the browser's zone. */
export function moment(iso) {
  return element("time", { dateTime: iso }, MOMENT.format(new Date(iso)));
}

/** The time alone where it is of today. */
export function briefly(iso) {
  const at = new Date(iso);
  const isToday = at.toDateString() === new Date().toDateString();
  return element("time", { dateTime: iso, title: MOMENT.format(at) }, (isToday ? CLOCK : DAY).format(at));
}

/** A day without a time: YYYY-MM-DD, read as local, since JavaScript would take it for UTC. */
export const day = (iso) => element("time", { dateTime: iso }, DAY.format(new Date(`${iso}T00:00`)));

/** A table of rows of texts or elements; the first cell of a row is its heading. */
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

/** Fills a description list from pairs of a word and what it means. */
export function describe(list, pairs) {
  list.replaceChildren(...pairs.flatMap(([term, text]) => [element("dt", {}, term), element("dd", {}, text)]));
}
