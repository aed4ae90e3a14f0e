// All scores of one patient, newest first, each with its model, and their trend.

import { ask } from "./api.js";
import { daysBetween, isPrior, openCompare, scanOf } from "./compare.js";
import { isWrongScan, reviewedLevel } from "./decide.js";
import { byId, element, moment, outside, percent, table } from "./dom.js";
import { countingPcr } from "./pcr.js";
import { LEVELS, REASONS } from "./words.js";

const SVG = "http://www.w3.org/2000/svg";
const DAY_CHARACTERS = "2021-03-04".length;
const WIDTH = 220;
const HEIGHT = 40;

let asking = 0; // counts requests: the response to an older one is dropped

function svg(tag, attributes) {
  const made = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  return made;
}

/** Draws a line of the probabilities from the oldest to the newest, 0 at the bottom and 1 at the top. */
function sparkline(shares) {
  const points = shares.map((share, i) => [
    4 + (i * (WIDTH - 8)) / Math.max(1, shares.length - 1),
    HEIGHT - 4 - share * (HEIGHT - 8),
  ]);
  const drawn = svg("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, class: "sparkline", "aria-hidden": "true" });
  drawn.append(svg("polyline", { points: points.map((point) => point.join(",")).join(" ") }));
  drawn.append(...points.map(([cx, cy]) => svg("circle", { cx, cy, r: 3 })));
  return drawn;
}

const number = (share) => (share === undefined ? "no number" : percent(share));

function row(answer, current) {
  const isThis = answer.id === current.id;
  const { probability, withheld } = answer.score;
  const when = moment(answer.study.acquired_at ?? answer.created_at);
  const level = withheld ? "not valid" : LEVELS[reviewedLevel(answer, "severe")];
  const words = [number(probability.severe), "severe" in probability && level?.toLowerCase()].filter(Boolean).join(", ");
  return [
    isThis ? element("span", {}, when, " (this)") : element("a", { href: `#/scans/${answer.job_id}` }, when),
    element("span", {}, words, ...rejection(answer)),
    number(probability.pcr_positive),
    answer.pcr ? `${answer.pcr.result}${countingPcr(answer) ? "" : ", of another time"}` : "–",
    outside(answer.model.name),
    isPrior(answer, current) ? priorOf(answer, current) : "",
  ];
}

/** Says that and why a reader rejected a result: its figures must not be taken for valid ones. */
function rejection({ decision }) {
  if (decision?.verdict !== "rejected") return [];
  return [" ", element("span", { className: "rejected" }, `rejected: ${REASONS[decision.reason].toLowerCase()}`)];
}

/** How much earlier a scan is, and a button to see it beside the current one. */
function priorOf(answer, current) {
  const days = daysBetween(answer, current);
  const button = element("button", { type: "button" }, "Side by side");
  button.setAttribute("aria-label", `Side by side with the scan of ${answer.study.acquired_at.slice(0, DAY_CHARACTERS)}`);
  button.addEventListener("click", () => openCompare(answer, current));
  return element("span", { className: "prior" }, days === 1 ? "1 day earlier " : `${days} days earlier `, button);
}

/**
 * The probabilities of a severe course by one model, one for each scan (its newest answer), in the order of the scans.
 * A scan that a reader rejected as the wrong scan or patient has none, whichever of its answers they rejected.
 */
export function trend(answers, model) {
  const wrong = new Set(answers.filter(isWrongScan).map(scanOf));
  const byScan = new Map();
  for (const answer of answers) {
    const scan = scanOf(answer);
    if (wrong.has(scan) || answer.model?.sha256 !== model || answer.score.probability.severe === undefined) continue;
    if (!byScan.has(scan)) byScan.set(scan, answer);
  }
  const when = ({ study, created_at }) => study.acquired_at ?? created_at;
  const inOrder = [...byScan.values()].sort((a, b) => (when(a) < when(b) ? -1 : 1));
  return inOrder.map(({ score }) => score.probability.severe);
}

export async function showHistory(answer, isCurrent) {
  const mine = ++asking;
  const box = byId("history");
  box.replaceChildren();
  if (!answer.patient?.key) {
    box.append(element("p", { className: "soft" }, "The scan does not name a patient."));
    return;
  }
  const { answers } = await ask(`patients/${answer.patient.key}/answers`);
  if (mine !== asking || !isCurrent()) return;
  const headings = ["Scan", "Severe course", "Positive PCR", "PCR", "Model", "Earlier"];
  box.replaceChildren(table("Scores of this patient", headings, answers.map((each) => row(each, answer))));
  const shares = trend(answers, answer.model.sha256);
  if (shares.length > 1) {
    box.prepend(element("p", { className: "trend" }, "Severe course by this model, oldest to newest scan ", sparkline(shares)));
  }
  const models = new Set(answers.map(({ model }) => model.sha256));
  if (models.size > 1) {
    box.append(element("p", { className: "soft" }, "Probabilities of different models are not directly comparable."));
  }
}
