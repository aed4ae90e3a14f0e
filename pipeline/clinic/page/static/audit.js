// The local audit: how readers agree with the live model, and whether scans or figures drift.

import { ask } from "./api.js";
import { byId, element, roughly, say, table } from "./dom.js";
import { LABELS, LEVELS, REASONS, VERDICTS } from "./words.js";

const DRIFTS = {
  familiarity: "Distance from the training scans, share of the limit: the newest 50 answers against all before",
  pcr: "Positive PCR: mean probability against the share of positive results",
  severe: "Severe course: mean probability against the share of severe courses, positive PCR only",
};
const WHO = { model: "The model said", reader: "The reader said" };

export function startAudit() {
  byId("show-audit").addEventListener("click", open);
}

async function open() {
  byId("audit-found").replaceChildren();
  say(byId("audit-refused"), "");
  byId("audit").showModal();
  try {
    byId("audit-found").replaceChildren(...figures(await ask("local-audit")));
  } catch (error) {
    say(byId("audit-refused"), error.text ?? String(error));
  }
}

/** Returns the figures as paragraphs and tables. */
export function figures({ model_sha256: model, answers, undecided, verdicts, reasons, levels, drift, calibration, outcomes_code: code }) {
  const counted = Object.entries(VERDICTS).map(([verdict, name]) => [name, verdicts[verdict] ?? 0]);
  const why = Object.entries(REASONS).filter(([reason]) => reasons[reason]).map(([reason, name]) => [name, reasons[reason]]);
  return [
    element("p", { className: "soft" }, `The live model, ${model.slice(0, 12)}: ${answers} ${answers === 1 ? "answer" : "answers"}. Answers that are not valid for patients do not count.`),
    table("Decisions", ["Decision", "Answers"], [...counted, ["Not read", undecided]]),
    ...(why.length ? [table("Reasons", ["Reason of corrections and rejections", "Answers"], why)] : []),
    ...Object.entries(levels).map(([label, { agreement, pairs }]) =>
      table(
        `Levels: ${LABELS[label].title}`,
        [`${LABELS[label].title}: the model said`, "the reader said", `Answers (the same: ${roughly(agreement)})`],
        pairs.map(({ model: said, reader, answers: count }) => [LEVELS[said], LEVELS[reader], count]),
      ),
    ),
    table("Drift", ["Drift", "Before or expected", "Now or observed", "Difference"], Object.entries(drift).map(driftRow)),
    ...Object.entries(calibration).map(([label, found]) =>
      table(
        `Outcomes: ${LABELS[label].title}`,
        [`${LABELS[label].title}: what became of the patients`, "Patients", "With event", "Expected", "Observed (95 % interval)"],
        [outcomeRow("All", found), ...found.bins.map(binRow), ...levelRows(found.levels)],
      ),
    ),
    ...(code ? [element("p", { className: "flag" }, `The node's outcomes cannot be read (${code}).`)] : []),
  ];
}

const outcomeRow = (name, { patients, events, expected = null, observed, low, high }) => [
  name,
  patients,
  events,
  expected === null ? "–" : roughly(expected),
  `${roughly(observed)} (${roughly(low)} to ${roughly(high)})`,
];

const binRow = (bin) => outcomeRow(`Probability ${roughly(bin.from)} to ${roughly(bin.to)}`, bin);

const levelRows = (levels) =>
  Object.entries(WHO).flatMap(([who, name]) => Object.entries(levels[who]).map(([level, found]) => outcomeRow(`${name}: ${LEVELS[level]}`, found)));

function driftRow([name, { before, now, answers, errors, alert }]) {
  const difference = errors === null ? `too few answers (${answers})` : `${errors.toFixed(1)} standard errors`;
  return [
    DRIFTS[name],
    before === null ? "–" : roughly(before),
    now === null ? "–" : roughly(now),
    alert ? element("span", { className: "flag" }, `${difference}: look at the scanner, the protocol and the patients`) : difference,
  ];
}
