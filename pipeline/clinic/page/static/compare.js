// An earlier answer of the same patient beside the one that is shown: two axial slices, and the figures of both.

import { ask } from "./api.js";
import { reviewedLevel, reviewedLungs } from "./decide.js";
import { byId, element, moment, outside, percent, roughly, say, show, table } from "./dom.js";
import { onWheel } from "./gestures.js";
import { Slices, placeOf } from "./slices.js";
import { LABELS, LEVELS, OVERLAYS, READER, VERDICTS, WINDOWS } from "./words.js";

const DAY_MS = 24 * 60 * 60 * 1000;
const DAY_CHARACTERS = "2021-03-04".length;
const OPAQUE = 0.6;
const KINDS = ["none", "lungs", "opacities"];

let sides = null; // the earlier scan and this one: { answer, plane, slices, index, slider, place }
let opening = 0; // counts openings: pictures that come late are dropped

export function startCompare() {
  byId("compare-overlay").append(...KINDS.map((value) => element("option", { value }, OVERLAYS[value])));
  byId("compare-window").append(...Object.entries(WINDOWS).map(([value, title]) => element("option", { value }, title)));
  for (const id of ["compare-overlay", "compare-window"]) byId(id).addEventListener("change", () => sides?.forEach(draw));
  byId("compare-close").addEventListener("click", closeCompare);
}

/** Removes the images: they must never appear beside another patient's name. */
export function closeCompare() {
  opening++;
  sides = null;
  byId("compare-pair").replaceChildren();
  byId("compare-figures").replaceChildren();
  show(byId("compare"), false);
}

const dayOf = ({ study }) => study.acquired_at && Date.parse(study.acquired_at.slice(0, DAY_CHARACTERS));
export const scanOf = ({ study, score }) => `${study.series_uid} ${score.input?.hu_sha256}`;

/** Days from an earlier scan to a later one; null if a date is unknown. */
export function daysBetween(earlier, later) {
  const [from, to] = [dayOf(earlier), dayOf(later)];
  return from && to ? Math.round((to - from) / DAY_MS) : null;
}

/** Whether an answer is about another, earlier scan. */
export const isPrior = (answer, current) =>
  scanOf(answer) !== scanOf(current) && Boolean(answer.study.acquired_at) && Boolean(current.study.acquired_at) && answer.study.acquired_at < current.study.acquired_at;

/** Shows an earlier answer beside the current one. */
export async function openCompare(earlier, current) {
  closeCompare();
  const mine = opening;
  show(byId("compare"), true);
  say(byId("compare-says"), "Loading.");
  byId("compare").scrollIntoView({ block: "nearest" });
  try {
    const planes = await Promise.all([earlier, current].map(({ id }) => ask(`answers/${id}/slices`)));
    if (mine !== opening) return;
    sides = [earlier, current].map((answer, i) => newSide(answer, planes[i].axial, i === 0 ? "Earlier" : "This scan"));
    byId("compare-pair").replaceChildren(...sides.map(({ box }) => box));
    say(byId("compare-says"), difference(earlier, current));
    byId("compare-figures").replaceChildren(figures(earlier, current));
    move(sides[1], planes[1].axial.start);
    byId("compare-close").focus();
  } catch (error) {
    if (mine === opening) say(byId("compare-says"), error.text ?? String(error));
  }
}

function difference(earlier, current) {
  const days = daysBetween(earlier, current);
  const when = days === 1 ? "1 day apart" : `${days} days apart`;
  const models = earlier.model.sha256 === current.model.sha256 ? "Both were scored by the same model." : "They were scored by different models: the probabilities are not directly comparable.";
  return `The scans are ${when}. ${models} Slices at the same share of each scan's height: the scans are not registered.`;
}

function newSide(answer, plane, title) {
  const tiles = element("div", { className: "tiles one" }, element("figure"));
  tiles.firstElementChild.dataset.plane = "axial";
  const slider = element("input", { type: "range", min: 0, max: plane.count - 1 });
  const place = element("output");
  const heading = element("p", {}, element("strong", {}, title), ": CT of ", moment(answer.study.acquired_at), ", by ", outside(answer.model.name));
  const box = element("div", { className: "side" }, heading, tiles, element("label", {}, "Axial ", place, slider));
  const side = { answer, plane, slider, place, box, index: 0, slices: new Slices(tiles, `answers/${answer.id}/slices`, { axial: plane }) };
  slider.addEventListener("input", () => move(side, Number(slider.value)));
  onWheel(tiles, (_, by) => move(side, side.index + by));
  return side;
}

/** Moves one scan to a slice, and the other to the same share of its height if they are linked. */
function move(side, index) {
  setIndex(side, index);
  const other = sides.find((each) => each !== side);
  const share = (side.index + 0.5) / side.plane.count;
  if (byId("compare-linked").checked || !other.slider.dataset.shown) setIndex(other, Math.floor(share * other.plane.count));
}

function setIndex(side, index) {
  side.index = Math.max(0, Math.min(side.plane.count - 1, index));
  side.slider.value = side.index;
  side.slider.dataset.shown = "yes";
  say(side.place, placeOf(side.index, side.plane));
  draw(side);
}

function draw({ answer, slices, index }) {
  slices.show("axial", index, overlayOf(answer), OPAQUE, byId("compare-window").value);
}

/** The overlay as the reader left it, like the figures: corrected by hand, or none if the mask is not usable. */
function overlayOf(answer) {
  const chosen = byId("compare-overlay").value;
  if (chosen === "none" || !reviewedLungs(answer)) return "none";
  return answer.reviewed && answer.decision.correction.mask ? READER + chosen : chosen;
}

// --- figures --------------------------------------------------------------------------------------

function figures(earlier, current) {
  const both = [earlier, current];
  const rows = [
    ...Object.entries(LABELS).map(([label, { title }]) => [title, ...both.map((answer) => probability(answer, label))]),
    ["Both lungs, mL", ...both.map((answer) => lungs(answer, ({ ml }) => String(Math.round(ml))))],
    ["Ground glass", ...both.map((answer) => lungs(answer, ({ ground_glass: share }) => roughly(share)))],
    ["Consolidation", ...both.map((answer) => lungs(answer, ({ consolidation: share }) => roughly(share)))],
    ["Reader", ...both.map(({ decision }) => (decision ? VERDICTS[decision.verdict].toLowerCase() : "not read"))],
    ["PCR", ...both.map(({ pcr }) => pcr?.result ?? "–")],
    ["Model", ...both.map(({ model }) => outside(model.name))],
  ];
  return table("Figures of both scans", ["", "Earlier", "This scan"], rows);
}

function probability(answer, label) {
  const { score } = answer;
  const share = score.probability[label];
  if (share === undefined) return "no number";
  const level = score.withheld ? "not valid" : LEVELS[reviewedLevel(answer, label)]?.toLowerCase();
  return [percent(share), level].filter(Boolean).join(", ");
}

function lungs(answer, text) {
  const held = reviewedLungs(answer);
  return held ? text(held.regions.both.whole) : "–";
}
