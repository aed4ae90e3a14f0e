// The records of who did what, page by page; what is deleted when; and the local audit.

import { clearFailure, fail, scrolling, when } from "./admin_shared.js";
import { ask } from "./api.js";
import { figures } from "./audit.js";
import { byId, day, element, keepFocus, outside, show, table } from "./dom.js";

const SHORT = 12; // digits of an id or hash
let next = null;

export function startRecords() {
  byId("search").addEventListener("submit", (event) => {
    event.preventDefault();
    openRecords().catch(fail);
  });
  byId("older").addEventListener("click", () => openRecords(next).catch(fail));
  byId("newest").addEventListener("click", () => openRecords().catch(fail));
}

export async function openRecords(before = null) {
  const asked = new URLSearchParams();
  for (const [name, value] of new FormData(byId("search"))) if (value) asked.set(name, name === "since" || name === "until" ? startOf(name, value) : value);
  if (before) asked.set("before", before);
  const found = await ask(`audit/search?${asked}`);
  clearFailure();
  next = found.next;
  if (!before) offer(found.actions);
  byId("records-found").replaceChildren(
    found.records.length
      ? table("Records", ["When", "Who", "Action", "Scan", "Model", "Code", "Details"], found.records.map(record))
      : element("p", {}, "No record matches."),
  );
  const focused = document.activeElement;
  show(byId("older"), Boolean(next));
  show(byId("newest"), Boolean(before));
  keepFocus(focused, byId("records-found"));
}

/** The beginning of a day in the browser's time zone; of the day after, for the end of a period. */
function startOf(name, text) {
  const at = new Date(`${text}T00:00`);
  if (name === "until") at.setDate(at.getDate() + 1);
  return at.toISOString();
}

function offer(actions) {
  const select = byId("search").elements.action;
  const chosen = select.value;
  select.replaceChildren(element("option", { value: "" }, "all"), ...actions.map((each) => element("option", { value: each }, each)));
  select.value = actions.includes(chosen) ? chosen : "";
}

function record({ at, who, action, job_id: job, model_sha256: model, code, output }) {
  return [
    when(at),
    outside(who),
    action,
    job ? element("a", { href: `./#/scans/${job}` }, job.slice(0, SHORT)) : "–",
    model ? element("code", { title: model }, model.slice(0, SHORT)) : "–",
    code ?? "–",
    output ? details(output) : "–",
  ];
}

function details(output) {
  const text = JSON.stringify(output);
  if (text.length <= 80) return element("code", {}, text);
  return element("details", {}, element("summary", {}, `${text.slice(0, 40)}…`), element("code", {}, text));
}

// --- what is deleted, and when -----------------------------------------------------------------------

export async function openRetention() {
  const plan = await ask("retention");
  byId("retention-found").replaceChildren(
    scrolling(periods(plan)),
    element("p", { className: "soft" }, plan.held ? `${plan.held} answers wait to be sent and are kept until then.` : "No answer waits to be sent."),
    due("Answers", plan.answers.due),
    due("Records", plan.records.due),
    plan.copies.length
      ? scrolling(table("Copies", ["Copy of the database from before an upgrade, format", "Deleted on"], plan.copies.map((each) => [String(each.format), day(each.due_on)])))
      : element("p", { className: "soft" }, "There is no copy of the database from before an upgrade."),
  );
}

function periods(plan) {
  const days = (count) => (count ? `${count} days` : "without limit");
  return table(
    "Periods",
    ["What", "Kept for", "Kept now", "The oldest one"],
    [
      ["Answers, with their files and PCR results", days(plan.answers_days), String(plan.answers.kept), when(plan.answers.oldest)],
      ["Records of who did what", days(plan.audit_days), String(plan.records.kept), when(plan.records.oldest)],
      ["Files of scans", plan.uploads ? "as long as their answers" : "until they are answered", "–", "–"],
    ],
  );
}

function due(what, days) {
  if (!days.length) return element("p", { className: "soft" }, `${what}: nothing is planned to be deleted.`);
  return scrolling(table(what, [`${what} are deleted on`, "Number"], days.map((each) => [day(each.on), String(each.count)])));
}

// --- how readers agree with the model ----------------------------------------------------------------

export async function openReaders() {
  const found = figures(await ask("local-audit"));
  byId("readers-found").replaceChildren(...found.map((each) => (each.matches("table") ? scrolling(each) : each)));
}
