// The sections below the images: measures of the lungs, the model's input, quality checks, the model itself.

import { byId, describe, element, outside, percent, roughly, say, show, table } from "./dom.js";
import { reviewedLungs } from "./decide.js";
import { checkName, SEXES } from "./words.js";

const PARTS = { whole: "Whole", upper: "Upper", middle: "Middle", lower: "Lower" };

/** A share of both lungs, and where the true one lies; answers of earlier versions, masks and corrections have no range. */
function withRange(share, range) {
  return range ? `${roughly(share)} (${Number((100 * range[0]).toFixed(1))} to ${roughly(range[1])})` : roughly(share);
}

/** Shows the measures of the lungs in `box`. */
export function showMeasures(box, lungs, whyNot = "Not measured.") {
  if (!lungs) {
    box.replaceChildren(element("p", { className: "soft" }, whyNot));
    return;
  }
  const { right, left, both } = lungs.regions;
  const rows = Object.entries(PARTS).map(([part, name]) => [
    name,
    ...[right, left].flatMap((side) => [roughly(side[part].ground_glass), roughly(side[part].consolidation)]),
  ]);
  const headings = ["", "Right: ground glass", "Right: consolidation", "Left: ground glass", "Left: consolidation"];
  const millilitres = ({ whole }) => `${Math.round(whole.ml)} mL`;
  const [glass, dense] = [lungs.bands_hu.ground_glass, lungs.bands_hu.consolidation];
  const ranges = lungs.ranges ?? {};
  const says = `${withRange(both.whole.ground_glass, ranges.ground_glass)} ground glass, ${withRange(both.whole.consolidation, ranges.consolidation)} consolidation`;
  const about = ranges.consolidation ? " In brackets: holds the true share in 95 % of synthetic scans, not known for patients." : "";
  box.replaceChildren(
    element(
      "p",
      {},
      `Both lungs, ${millilitres(both)}: ${says}. Right ${millilitres(right)}, left ${millilitres(left)}.`,
    ),
    table("Share of each part of the lungs by density", headings, rows),
    element(
      "p",
      { className: "soft" },
      `Thirds of each lung's height; shares of volume at ${glass[0]} to ${glass[1]} HU and ${dense[0]} to ${dense[1]} HU.${about} ${lungs.are_marked ? "Vessels, bronchi and hila do not count, other diseases do. Healthy: 4.3 % (2.7 to 17.8 %) at -600 to -250 HU, with vessels (Respirology 2020; 25:855)." : "Vessels, and densities caused by other diseases, are included."}`,
    ),
  );
}

function showSaw({ input, familiarity }) {
  const pairs = [
    ["Scan", "only the lungs and the tissue directly around them"],
    ["Age", input.age_band ? `${input.age_band} years` : "not given"],
    ["Sex", SEXES[input.sex] ?? "not given"],
  ];
  if (familiarity) {
    const share = roughly(familiarity.distance / familiarity.limit);
    pairs.push(["Distance from training scans", `${share} of the largest distance at which a score is given`]);
  }
  describe(byId("saw"), pairs);
}

/** Shows the checks in `box`, and in `flagged` that some have a warning: before the reader uses the `figures`. */
export function showQuality(box, flagged, quality, figures) {
  const rows = quality.map(({ name, value, unit, verdict, says, remedy, code }) => [
    checkName(name),
    `${value} ${unit}`.trim(),
    verdict === "ok" ? "ok" : element("span", { className: "flag" }, `Check: ${says}. ${remedy} (${code})`),
  ]);
  box.replaceChildren(table("Checks of the scan", ["Check", "Found", "Verdict"], rows));
  const flags = quality.filter(({ verdict }) => verdict !== "ok");
  show(flagged, flags.length > 0);
  const names = flags.map(({ name }) => checkName(name).toLowerCase()).join("; ");
  say(flagged, flags.length ? `Before you use the ${figures}: ${flags.length} of ${quality.length} quality checks have a warning (${names}). See “Quality of the scan”.` : "");
}

function showModel({ score, model }) {
  const { study, rounds, sites, signature, doubts = [], released_because } = score.model; // earlier answers have no doubts
  const kind = score.trained_on_synthetic_data ? "synthetic hospitals" : "hospitals";
  describe(byId("model"), [
    ["Name", outside(model.name)],
    ["Study", outside(study)],
    ["Training", `${rounds} rounds at ${sites} ${kind}`],
    ["Release", element("code", {}, model.sha256)],
    ["Signature", outside(signature)],
    ...doubts.map((doubt) => ["Reason to doubt it", element("strong", { className: "warning" }, outside(doubt))]),
    ...(released_because ? [["Released because", outside(released_because)]] : []),
    ["Scoring time", `${score.timing_seconds.total.toFixed(1)} s`],
  ]);
}

/** Shows what the reader left of the measures, and below it what the model said. */
function showLungs(answer) {
  const { lungs } = answer.score;
  const held = reviewedLungs(answer);
  const box = byId("measures");
  showMeasures(box, held, lungs ? "The reader found the outline of the lungs not usable." : "Not measured.");
  const isByHand = Boolean(answer.decision?.correction.mask);
  if (isByHand) box.prepend(element("p", { className: "by-reader" }, "Computed from a mask that the reader corrected by hand."));
  const isChanged = lungs && answer.reviewed && JSON.stringify(held?.regions) !== JSON.stringify(lungs.regions);
  if (!isChanged) return;
  const { both, right, left } = lungs.regions;
  const own = element("div");
  showMeasures(own, lungs);
  box.append(
    element(
      "details",
      {},
      element("summary", {}, `The model measured: ${roughly(both.whole.ground_glass)} ground glass, ${roughly(both.whole.consolidation)} consolidation; right ${Math.round(right.whole.ml)} mL, left ${Math.round(left.whole.ml)} mL.`),
      own,
    ),
  );
}

export function showFacts(answer) {
  showLungs(answer);
  showSaw(answer.score);
  showQuality(byId("quality"), byId("flagged"), answer.score.quality, "probabilities");
  showModel(answer);
}

/** Describes the saliency map, always with the probability that it explains. */
export function saliencyText({ saliency, probability }, title) {
  if (!saliency?.shown) return saliency?.why_not ? `No map of where the model looked: ${saliency.why_not}.` : "";
  const which = `“${title.toLowerCase()}” (${percent(probability[saliency.label])})`;
  const how = saliency.method ? ` by ${saliency.method},` : "";
  return `Where the model looked for ${which},${how} relative to this scan's own maximum. Not a lesion contour.`;
}
