// The queue of scans, newest first or most urgent first. It refreshes itself and updates only changed items, so that the focus stays.

import { ask } from "./api.js";
import { briefly, byId, element, outside, percent, personName, say, show } from "./dom.js";
import { reviewedLevel } from "./decide.js";
import { briefProblems, openProblems } from "./deliveries.js";
import { byUrgency, clearFind, matches, startFind, wanted } from "./find.js";
import { pcrMeaning } from "./probability.js";
import { isMine, showReader } from "./reader.js";
import { LEVELS, STATES, SYNTHETIC, VERDICTS } from "./words.js";

const PAGE = 50;
const MOST_JOBS = 500; // that one request lists
const MOST_ANSWERS = 50; // that one request names
const BUSY_MS = 1000;
const IDLE_MS = 8000;

const jobs = new Map(); // by id, the newest first
const answers = new Map(); // by id: probability and level of each answer
const learnt = new Map(); // by id of an answer: its revision in the list of jobs, when it was fetched
const items = new Map(); // by id of a job: its line in the list
let problems = new Map(); // by id of an answer: its deliveries that failed or are retried
let timer = null;
let generation = 0; // counts refreshes: the response to an older one is dropped
let isStarted = false;
let isKnown = false; // whether the list was loaded: scans that ended before are not announced
let chosen = null;
let whenChanged = () => {};
let whenEnded = () => {};

const isOpen = ({ state }) => state === "waiting" || state === "working";

/** `changed(job)`: the chosen scan has a new state; `ended(jobs)`: scans ended, with or without an answer. */
export function startWorklist({ changed, ended }) {
  whenChanged = changed;
  whenEnded = ended;
  byId("more").addEventListener("click", loadOlder);
  startFind(() => arrange());
  document.addEventListener("visibilitychange", () => isStarted && !document.hidden && refresh());
}

export function stopWorklist() {
  clearTimeout(timer);
  generation++;
  isStarted = isKnown = false;
  chosen = null;
  for (const kept of [jobs, answers, learnt, items]) kept.clear();
  byId("scans").replaceChildren();
  clearFind();
  say(byId("find-says"), "");
}

/** Refreshes now and then periodically; a hidden page waits until it is visible. */
export async function refresh() {
  isStarted = true;
  clearTimeout(timer);
  const mine = ++generation;
  try {
    const limit = Math.min(MOST_JOBS, Math.max(PAGE, jobs.size)); // older ones that were loaded may change too
    const { jobs: found } = await ask(`jobs?limit=${limit}`);
    if (mine !== generation) return; // signed out or refreshed in the meantime
    await take(found, found.length === limit);
    say(byId("worklist-refused"), "");
  } catch (error) {
    if (error.status === 401) return;
    say(byId("worklist-refused"), error.text ?? String(error));
  }
  if (mine !== generation || document.hidden) return;
  timer = setTimeout(refresh, [...jobs.values()].some(isOpen) ? BUSY_MS : IDLE_MS);
}

async function loadOlder() {
  const last = [...jobs.keys()].at(-1);
  const { jobs: found } = await ask(`jobs?limit=${PAGE}&before=${last}`);
  for (const job of found) jobs.set(job.id, job);
  show(byId("more"), found.length === PAGE);
  await draw();
}

/** `mayHaveOlder`: the service may have older jobs than these. */
async function take(found, mayHaveOlder) {
  const before = new Map(jobs);
  const newest = new Map(found.map((job) => [job.id, job]));
  const older = [...jobs].filter(([id]) => !newest.has(id) && mayHaveOlder);
  jobs.clear();
  for (const [id, job] of [...newest, ...older]) jobs.set(id, job);
  if (!isKnown) show(byId("more"), mayHaveOlder);
  await draw();
  const wasOpen = ({ id }) => !before.has(id) || isOpen(before.get(id));
  const ended = found.filter((job) => !isOpen(job) && wasOpen(job));
  if (isKnown && ended.length) whenEnded(ended);
  isKnown = true;
  const shown = jobs.get(chosen);
  const was = before.get(chosen);
  if (shown) showReader(shown);
  if (shown && (was?.state !== shown.state || was?.position !== shown.position)) whenChanged(shown);
}

/** Fetches answers that are new or changed, from the list of answers: fetching them singly would be recorded as opening them. */
async function learnAnswers() {
  const mine = generation;
  const isNew = ({ answer_id: id, answer_revision: revision }) => id && learnt.get(id) !== revision;
  const asked = shownJobs().filter(isNew);
  while (asked.length) {
    const some = asked.splice(0, MOST_ANSWERS);
    const { answers: found } = await ask(`answers?${some.map((job) => `id=${job.answer_id}`).join("&")}`);
    if (mine !== generation) return; // signed out, or the next refresh asks for them
    for (const answer of found) answers.set(answer.id, answer);
    for (const job of some) learnt.set(job.answer_id, job.answer_revision);
  }
}

async function draw() {
  await learnAnswers().catch(() => {}); // the list is shown without them
  arrange();
  problems = await openProblems().catch(() => problems);
  arrange();
}

/** Draws the lines that are asked for, in the order that is asked for. */
function arrange() {
  show(byId("worklist-empty"), jobs.size === 0);
  const scans = byId("scans");
  const lines = linesShown();
  const shown = new Set(lines.map(({ id }) => id));
  const [all, older] = [shownJobs().length, byId("more").hidden ? "" : " Older scans are searched when they are loaded."];
  say(byId("find-says"), lines.length < all ? `${lines.length} of ${all} scans shown.${older}` : "");
  for (const [id, item] of items) {
    if (!shown.has(id)) {
      item.remove();
      items.delete(id);
    }
  }
  let place = scans.firstElementChild;
  for (const job of lines) {
    const item = items.get(job.id) ?? newItem(job.id);
    write(item, job);
    if (item === place) place = place.nextElementSibling;
    else scans.insertBefore(item, place);
  }
  choose(chosen);
}

function linesShown() {
  const { order, ...filter } = wanted();
  const lines = shownJobs().map((job) => [job, answers.get(job.answer_id), problems.has(job.answer_id)]);
  const found = lines.filter(([job, answer, isUndelivered]) => matches(job, answer, { ...filter, isUndelivered }));
  return (order === "urgent" ? byUrgency(found) : found).map(([job]) => job);
}

/** The jobs with a line of their own: a scan that was sent again has one line, at its newest place. */
function shownJobs() {
  const seen = new Set();
  return [...jobs.values()].filter(({ answer_id: id }) => !id || (!seen.has(id) && seen.add(id)));
}

/** Returns the id of the job whose line stands for this one. */
function lineOf(id) {
  const answer = jobs.get(id)?.answer_id;
  return answer ? shownJobs().find((job) => job.answer_id === answer).id : id;
}

const timesSent = ({ answer_id: id }) => [...jobs.values()].filter((job) => id && job.answer_id === id).length;

function newItem(id) {
  const link = element("a", { href: `#/scans/${id}` });
  const item = element("li", {}, link);
  items.set(id, item);
  return item;
}

function write(item, job) {
  const { patient } = job;
  const link = item.firstElementChild;
  const answer = answers.get(job.answer_id);
  const times = timesSent(job);
  const undelivered = briefProblems(problems.get(job.answer_id));
  const text = JSON.stringify([job, times, answer?.revision, undelivered]);
  if (item.dataset.text === text) return;
  item.dataset.text = text;
  item.dataset.state = job.state;
  link.replaceChildren(
    element("span", { className: "name" }, outside(personName(patient?.name) || patient?.id || (isOpen(job) ? "Patient not read yet" : "Patient unknown"))),
    element("span", { className: "when" }, briefly(job.received_at)),
    element("span", { className: "id" }, outside(patient?.id)),
    element("span", { className: "outcome" }, ...outcome(job, answer)),
    answer?.decision ? element("span", { className: `said decided ${answer.decision.verdict}` }, VERDICTS[answer.decision.verdict]) : "",
    job.reader ? element("span", { className: isMine(job) ? "said reader mine" : "said reader" }, ...(isMine(job) ? ["with you"] : ["with ", outside(personName(job.reader.person))])) : "",
    undelivered ? element("span", { className: "said warning" }, undelivered) : "",
    times > 1 ? element("span", { className: "said" }, `the same scan, sent ${times} times`) : "",
  );
}

function outcome(job, answer) {
  if (job.state === "waiting" && job.position) return [`${STATES.waiting}, ${job.position}.`];
  if (job.state !== "answered" || !answer) return [STATES[job.state]];
  const { score } = answer;
  const synthetic = score.trained_on_synthetic_data
    ? element("span", { className: "warning", title: SYNTHETIC }, score.withheld ? "synthetic model: not valid" : "synthetic model")
    : "";
  if (!pcrMeaning(answer).applies) return ["PCR negative: severe does not apply", synthetic];
  if (score.probability.severe === undefined) {
    return [element("span", { title: score.no_number?.severe ?? "" }, "severe: no number, not calibrated or not evaluated"), synthetic];
  }
  const level = reviewedLevel(answer, "severe");
  const className = score.withheld ? "figure withheld" : "figure";
  const figure = element("span", { className }, `severe ${percent(score.probability.severe)}`);
  return [figure, level ? element("span", { className: `level ${level}` }, LEVELS[level]) : "", synthetic];
}

/** Returns the last known state of a scan. */
export const known = (id) => jobs.get(id);

/** Marks the scan that is shown. */
export function choose(id) {
  chosen = id;
  for (const [each, item] of items) {
    const link = item.firstElementChild;
    if (each === lineOf(id)) link.setAttribute("aria-current", "true");
    else link.removeAttribute("aria-current");
  }
}

/** Returns the id of the scan `step` places below the chosen one, or of the first scan. */
export function neighbour(step) {
  const ids = linesShown().map(({ id }) => id);
  const at = ids.indexOf(lineOf(chosen));
  return ids[at < 0 ? 0 : Math.min(ids.length - 1, Math.max(0, at + step))];
}

/** Shows an answer as it is now in the list, for example after it was opened or a PCR result was entered. */
export function learnAnswer(answer) {
  answers.set(answer.id, answer);
  if (isKnown) arrange();
}
