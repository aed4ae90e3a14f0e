// The reader's decision about an answer: accept it, correct it, or reject it with a reason.

import { ask } from "./api.js";
import { byId, element, keepFocus, moment, outside, personName, say, show, table } from "./dom.js";
import { Mask } from "./mask.js";
import { openMaskEditor, startMaskEditor } from "./mask_editor.js";
import { LABELS, LEVELS, REASONS, VERDICTS } from "./words.js";

const THIRDS = { upper: "Upper", middle: "Middle", lower: "Lower" };
const DENSITIES = { ground_glass: "ground glass", consolidation: "consolidation" };
const SIDES = { right: "Right", left: "Left" };
const PERCENT = 100;
const OPENERS = { corrected: "correct", rejected: "reject" }; // the buttons that open the form

let current = null; // the answer that is shown
let isPerson = false;
let verdict = null; // that the open form is for
let isSending = false;
let mask = null; // the mask that is corrected by hand, once it is loaded
let whenDecided = () => {};
let whenChanged = () => {};

/** `decided(answer)`: a decision was stored; `changed()`: the answer is no longer the one that is shown. */
export function startDecide({ decided, changed }) {
  whenDecided = decided;
  whenChanged = changed;
  byId("accept").addEventListener("click", () => send({ verdict: "accepted" }));
  byId("correct").addEventListener("click", () => toggle("corrected"));
  byId("reject").addEventListener("click", () => toggle("rejected"));
  byId("mask-unusable").addEventListener("click", sendUnusable);
  byId("edit-mask").addEventListener("click", editMask);
  startMaskEditor();
  byId("decide-form").addEventListener("submit", (event) => event.preventDefault());
  byId("decide-form").addEventListener("keydown", (event) => event.key === "Escape" && leave());
  byId("lungs-unusable").addEventListener("change", showWhatFollows);
  byId("reasons").append(
    ...Object.entries(REASONS).map(([code, text]) => {
      const button = element("button", { type: "button", value: code }, text);
      button.addEventListener("click", () => send({ verdict, reason: code }));
      return button;
    }),
  );
}

/** Only a named person may decide. */
export function allowDecide({ role, person }) {
  isPerson = role !== "read" && Boolean(person);
}

export function closeDecide() {
  current = null;
  close();
}

/** Moves the focus to a button, for a keyboard shortcut; correcting and rejecting also open their form. */
export function goDecide(id) {
  const button = byId(id);
  if (!button.checkVisibility()) return;
  button.focus();
  if (id !== "accept") button.click();
}

export function showDecide(answer) {
  const isSame = current?.id === answer.id && current.revision === answer.revision;
  current = answer;
  if (isSame) return; // keep the user's input
  const focused = document.activeElement;
  close();
  say(byId("decide-refused"), "");
  const { decision, score } = answer;
  show(byId("decide"), !score.withheld);
  show(byId("decide-acts"), isPerson && !score.withheld);
  show(byId("mask-unusable"), Boolean(score.lungs) && (decision?.correction.lungs_usable ?? true));
  byId("decide").dataset.verdict = decision?.verdict ?? "";
  byId("decide-says").replaceChildren(...(decision ? sayDecision(decision) : [isPerson ? "Nobody has read this result yet." : "Nobody has read this result yet. A named person can accept, correct or reject it."]));
  keepFocus(focused, byId("decide-says")); // not a button: a key that is held too long must not decide again
}

function sayDecision({ verdict: made, person, at, reason, comment, correction }) {
  const levels = Object.entries(correction.levels).map(([label, level]) => `${LABELS[label].title}: ${LEVELS[level].toLowerCase()}`);
  const details = [
    reason && REASONS[reason],
    ...levels,
    Object.keys(correction.shares).length && "shares of the lungs corrected",
    correction.mask && `mask of the lungs corrected by hand (${correction.mask.changed} voxels)`,
    !correction.lungs_usable && "outline of the lungs not usable",
  ].filter(Boolean);
  return [
    element("strong", {}, VERDICTS[made]),
    " by ",
    outside(personName(person)),
    ", ",
    moment(at),
    details.length ? `. ${details.join("; ")}` : "",
    ".",
    ...(comment ? [" Remark: ", outside(comment)] : []),
  ];
}

// --- the form -------------------------------------------------------------------------------------

function toggle(wanted) {
  if (verdict === wanted) {
    close();
    return;
  }
  verdict = wanted;
  const isCorrection = wanted === "corrected";
  show(byId("corrections"), isCorrection);
  if (isCorrection) drawCorrections();
  say(byId("reasons-title"), isCorrection ? "Save the correction. Why?" : "Reject the result. Why?");
  byId("decide-comment").value = "";
  show(byId("decide-form"), true);
  for (const [of, id] of Object.entries(OPENERS)) byId(id).ariaExpanded = String(verdict === of);
}

function close() {
  verdict = null;
  mask = null;
  show(byId("decide-form"), false);
  for (const id of Object.values(OPENERS)) byId(id).ariaExpanded = "false";
}

/** Closes the form without a decision. */
function leave() {
  byId(OPENERS[verdict]).focus();
  close();
}

/** What holds now: the newest decision, else what the model said. */
const holds = () => ({
  level: current.reviewed?.level ?? current.score.level ?? {},
  lungs: current.reviewed ? current.reviewed.lungs : current.score.lungs,
});

/** The labels with a probability, in the order of the page. */
const labels = () => Object.keys(LABELS).filter((label) => label in current.score.probability);

function drawCorrections() {
  const { level } = holds();
  byId("corrected-levels").replaceChildren(
    ...labels().map((label) => {
      const choice = element("select", { id: `level-${label}` }, ...[["", "No level"], ...Object.entries(LEVELS)].map(([value, text]) => element("option", { value }, text)));
      choice.value = level[label] ?? "";
      return element("label", {}, `${LABELS[label].title} `, choice);
    }),
  );
  const lungs = current.score.lungs;
  const isUnusable = current.reviewed?.lungs === null && Boolean(lungs);
  byId("lungs-unusable").checked = isUnusable;
  show(byId("lungs-unusable").parentElement, Boolean(lungs));
  showWhatFollows();
  if (lungs) byId("corrected-shares").replaceChildren(sharesTable((holds().lungs ?? lungs).regions));
}

/** The mask of the decision that holds, if it was corrected by hand. */
const heldMask = () => current.decision?.correction.mask;

/** Shows the controls that apply: the shares follow from a mask that was corrected, and neither is kept of lungs that are not usable. */
function showWhatFollows() {
  const isUsable = Boolean(current.score.lungs) && !byId("lungs-unusable").checked;
  const changed = mask ? mask.changed : (heldMask()?.changed ?? 0);
  show(byId("corrected-mask"), isUsable && current.files.includes("labels.nii.gz"));
  show(byId("corrected-shares"), isUsable && !changed);
  say(byId("mask-state"), changed ? `${changed} voxels of the mask are corrected. The table follows from the mask.` : "");
}

async function loadMask() {
  const { id } = current;
  const loaded = mask ?? (await Mask.load(current));
  if (current?.id !== id || !verdict) return null; // another scan was opened meanwhile
  mask = loaded;
  return mask;
}

async function editMask() {
  const { id } = current;
  say(byId("decide-refused"), "");
  try {
    if (await loadMask()) openMaskEditor(id, mask, () => current?.id === id && verdict && showWhatFollows());
  } catch (error) {
    if (current?.id === id) say(byId("decide-refused"), error.text ?? String(error));
  }
}

function sharesTable(regions) {
  const columns = Object.keys(SIDES).flatMap((side) => Object.keys(DENSITIES).map((density) => [side, density]));
  const cell = (part, side, density) => {
    const share = regions[side][part][density];
    const input = element("input", { type: "number", min: 0, max: PERCENT, step: 0.1, value: share === null ? "" : Number((share * PERCENT).toFixed(1)), disabled: share === null });
    Object.assign(input.dataset, { part, side, density, was: input.value });
    input.setAttribute("aria-label", `${SIDES[side]} ${THIRDS[part].toLowerCase()}: ${DENSITIES[density]}, percent`);
    return input;
  };
  const rows = Object.entries(THIRDS).map(([part, name]) => [name, ...columns.map(([side, density]) => cell(part, side, density))]);
  return table("Corrected shares of each third, in percent", ["Percent", ...columns.map(([side, density]) => `${SIDES[side]}: ${DENSITIES[density]}`)], rows);
}

/** Returns what differs from the model's result: a correction replaces an earlier one as a whole. */
async function corrections() {
  const levels = {};
  for (const label of labels()) {
    const chosen = byId(`level-${label}`).value;
    if (chosen && chosen !== (current.score.level?.[label] ?? "")) levels[label] = chosen;
  }
  const isUsable = !byId("lungs-unusable").checked;
  if (!isUsable || !current.score.lungs) return { levels, lungs_usable: isUsable };
  if (heldMask()) await loadMask();
  if (mask?.changed) return { levels, mask: await mask.entry() };
  return { levels, shares: correctedShares() };
}

/** Saves at once that the mask is not usable; levels that the reader set stay. */
function sendUnusable() {
  const levels = current.decision?.correction.levels ?? {};
  send({ verdict: "corrected", reason: "lungs", correction: { levels, lungs_usable: false }, comment: "" });
}

function correctedShares() {
  const shares = structuredClone(current.decision?.correction.shares ?? {});
  for (const input of byId("corrected-shares").querySelectorAll("input:enabled")) {
    const { part, side, was } = input.dataset;
    if (input.value === was) continue;
    const region = (holds().lungs ?? current.score.lungs).regions[side][part];
    shares[side] ??= {};
    shares[side][part] ??= { ground_glass: region.ground_glass, consolidation: region.consolidation };
    shares[side][part][input.dataset.density] = input.value === "" ? 0 : Number(input.value) / PERCENT;
  }
  return shares;
}

/** Sends a decision; by default with what the form says. */
async function send({ verdict: wanted, reason = null, correction, comment = wanted === "accepted" ? "" : byId("decide-comment").value.trim() }) {
  if (isSending || !current) return; // a double click sends once
  const { id, revision } = current;
  const json = { verdict: wanted, revision, reason, comment };
  isSending = true;
  say(byId("decide-refused"), "");
  try {
    if (wanted === "corrected") json.correction = correction ?? (await corrections());
    const answer = await ask(`answers/${id}/decisions`, { method: "POST", json });
    if (current?.id === id) whenDecided(answer);
  } catch (error) {
    if (current?.id !== id) return;
    if (error.code === "E_ANSWER_CHANGED") await whenChanged();
    say(byId("decide-refused"), error.text ?? String(error));
  } finally {
    isSending = false;
  }
}

/** The table of the lungs after a decision, for the page: what the reader left of the model's measures. */
export const reviewedLungs = (answer) => (answer.reviewed ? answer.reviewed.lungs : answer.score.lungs);

/** The level that counts: the reader's, else the model's; null if there is none. */
export const reviewedLevel = ({ reviewed, score }, label) => reviewed?.level[label] ?? score.level?.[label] ?? null;

/** Whether a reader found that the scan is a wrong one, or of another patient. */
export const isWrongScan = ({ decision }) => decision?.verdict === "rejected" && decision.reason === "wrong_scan";

/** One line for a card: which level the reader set. */
export function readersLevel(answer, label) {
  const level = answer.decision?.correction.levels[label];
  return level ? `Set by the reader: ${LEVELS[level].toLowerCase()}. The model said: ${(LEVELS[answer.score.level?.[label]] ?? "no level").toLowerCase()}.` : "";
}
