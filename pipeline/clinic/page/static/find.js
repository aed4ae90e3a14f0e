// Which lines of the worklist are shown, and in which order. Ordering hides no line.

import { reviewedLevel } from "./decide.js";
import { byId, personName } from "./dom.js";
import { pcrMeaning } from "./probability.js";
import { isMine } from "./reader.js";

const RANKS = { high: 0, intermediate: 1, uncertain: 2, low: 4 };
const NO_LEVEL = 3; // nothing is known: waiting, no score, no level, or a result that does not apply

/** Returns the level of a severe course that counts, if it is a verdict on this patient. */
function levelOf(answer) {
  if (!answer || answer.score.withheld || !pcrMeaning(answer).applies) return null;
  return reviewedLevel(answer, "severe");
}

/** The place of a line by urgency, the smallest first: severe and certain, then the less severe and the uncertain. */
export const urgency = (answer) => RANKS[levelOf(answer)] ?? NO_LEVEL;

const SHOWN = {
  all: () => true,
  attention: (job, answer) => job.state === "answered" && urgency(answer) < NO_LEVEL,
  undecided: ({ state }, answer) => state === "answered" && !answer?.decision && !answer?.score.withheld,
  mine: isMine,
  unassigned: ({ state, reader }, answer) => !reader && state !== "no_score" && !answer?.decision,
  unread: ({ state }) => state === "waiting" || state === "working",
  no_score: ({ state }) => state === "no_score",
  undelivered: (job, answer, isUndelivered) => isUndelivered,
};

/** The words of a search must all be in the patient's name or ID, in any order, large or small. */
export function matches(job, answer, { text, shown, isUndelivered = false }) {
  const { name = "", id = "" } = job.patient ?? {};
  const where = `${personName(name)} ${name} ${id}`.toLowerCase();
  const words = text.toLowerCase().split(/[\s,]+/);
  return SHOWN[shown](job, answer, isUndelivered) && words.every((word) => where.includes(word));
}

/** Sorts pairs of a job and its answer, newest first, by urgency; equally urgent ones by probability, then as before. */
export function byUrgency(lines) {
  const share = ([, answer]) => (urgency(answer) === NO_LEVEL ? 0 : answer.score.probability.severe);
  return [...lines].sort((a, b) => urgency(a[1]) - urgency(b[1]) || share(b) - share(a));
}

/** What the fields above the list ask for. */
export const wanted = () => ({ text: byId("find-text").value, shown: byId("find-shown").value, order: byId("find-order").value });

/** Shows all lines again: a name must not stay in the field after somebody signed out. */
export const clearFind = () => byId("find").reset();

/** `changed()`: called when the fields ask for something else. */
export function startFind(changed) {
  byId("find").addEventListener("input", changed);
  byId("find").addEventListener("submit", (event) => event.preventDefault());
}
