// The two probabilities: value, band, the release's operating points and their meaning, drawn and in words.

import { byId, element, percent, roughly } from "./dom.js";
import { readersLevel, reviewedLevel } from "./decide.js";
import { countingPcr } from "./pcr.js";
import { LABELS, LEVELS, SYNTHETIC } from "./words.js";

const NO_PCR = { false: "No PCR result is known.", true: "The known PCR result is of another time." };

/** Explains what the PCR result means for the probability of a severe course. It changes only the text. */
export function pcrMeaning({ score, ...answer }) {
  const pcr = countingPcr(answer);
  if (score.trained_on_synthetic_data && pcr?.result !== "negative") return { applies: true, text: SYNTHETIC };
  switch (pcr?.result) {
    case "positive":
      return { applies: true, text: "The PCR is positive: this probability applies to this patient." };
    case "negative":
      return {
        applies: false,
        text: "Does not apply: it is valid only for patients with a positive PCR, and this patient's PCR is negative.",
      };
    case "indeterminate":
      return { applies: true, text: "The PCR is indeterminate. Read this as: if the PCR were positive." };
    default:
      return { applies: true, text: `${NO_PCR[Boolean(answer.pcr)]} Read this as: if the PCR were positive.` };
  }
}

function levelText(level, points) {
  if (!level) return "No level is shown: a level needs both operating points.";
  const out = roughly(points.rule_out.threshold);
  const into = roughly(points.rule_in.threshold);
  if (level === "uncertain") {
    return `The 95 % band crosses a threshold of the release (rules out below ${out}, rules in from ${into}): undecided.`;
  }
  if (level === "low") return `Below ${out}: the release rules out.`;
  if (level === "high") return `At or above ${into}: the release rules in.`;
  if (points.rule_out.threshold > points.rule_in.threshold) {
    return `The release's operating points overlap here (rules in from ${into}, rules out below ${out}): undecided.`;
  }
  return `Between the release's operating points: rules out below ${out}, rules in from ${into}.`;
}

/** Says what each threshold reached on validation patients, and why one is missing; nothing of answers before both. */
function evidenceTexts(points, missing) {
  const known = Object.entries(points ?? {})
    .filter(([, point]) => point.says)
    .map(([name, point]) => `To ${name.replace("_", " ")}: ${point.says}`);
  return [...known, ...new Set(Object.values(missing ?? {}))];
}

function mark(className, share, title) {
  const made = element("span", { className, title });
  made.style.left = `${share * 100}%`;
  return made;
}

/** Draws the scale from 0 to 100 %: band, operating points, and the probability itself. */
function scale(p, interval, points) {
  const line = element("div", { className: "line" });
  if (interval) {
    const band = mark("band", interval[0], "");
    band.style.width = `${(interval[1] - interval[0]) * 100}%`;
    line.append(band);
  }
  const ends = element("div", { className: "ends" }, element("span", {}, "0"), element("span", {}, "100 %"));
  for (const [name, says] of [["rule_out", "rules out below"], ["rule_in", "rules in from"]]) {
    if (points?.[name]) line.append(mark(`point ${name}`, points[name].threshold, `${says} ${roughly(points[name].threshold)}`));
  }
  line.append(mark("marker", p, ""));
  return element("div", { className: "scale", ariaHidden: "true" }, line, ends);
}

function card(label, { score, ...answer }, applies, aside) {
  const p = score.probability[label];
  const interval = score.interval?.[label];
  const level = reviewedLevel({ score, ...answer }, label);
  const points = score.operating_points?.[label];
  const band = interval
    ? `95 % band of the calibration: ${percent(interval[0])} to ${percent(interval[1])}`
    : "No band: the release contains none";
  const { withheld } = score;
  const made = byId(label);
  if (p === undefined) {
    made.classList.remove("void", "withheld");
    made.replaceChildren(
      element("h3", {}, LABELS[label].title),
      element("p", { className: "meaning" }, LABELS[label].meaning),
      element("p", { className: "level-says" }, score.no_number?.[label] ?? "No number."),
    );
    return;
  }
  made.classList.toggle("void", !applies);
  made.classList.toggle("withheld", Boolean(withheld));
  made.replaceChildren(
    element("h3", {}, LABELS[label].title),
    element("p", { className: "meaning" }, LABELS[label].meaning),
    element(
      "p",
      { className: "figure" },
      element("strong", {}, percent(p)),
      level && element("span", { className: `level ${level}` }, LEVELS[level]),
    ),
    element("p", { className: "interval" }, band),
    scale(p, interval, points),
    element("p", { className: "level-says" }, withheld ?? levelText(score.level?.[label] ?? null, points)),
    ...(withheld ? [] : evidenceTexts(points, score.missing_points?.[label])).map((text) =>
      element("p", { className: "evidence" }, text),
    ),
    element("p", { className: "by-reader" }, readersLevel({ score, ...answer }, label)),
    withheld ? "" : element("p", { className: "applies" }, aside),
  );
}

export function showProbabilities(answer) {
  const severe = pcrMeaning(answer);
  card("severe", answer, severe.applies, severe.text);
  const pcr = countingPcr(answer);
  const known = pcr && pcr.result !== "indeterminate";
  card(
    "pcr_positive",
    answer,
    true,
    known ? `The PCR is ${pcr.result}: use that result, not this estimate.` : "An estimate from the CT. It does not replace a PCR.",
  );
}
