// The PCR result of an answer: found in the laboratory's feed, or entered here.

import { ask } from "./api.js";
import { byId, day, element, outside, say } from "./dom.js";

let current = null; // the answer that is shown
let whenSaved = () => {};

/** `saved(answer)`: called with the answer and its new result. */
export function startPcr(saved) {
  whenSaved = saved;
  byId("pcr-form").addEventListener("submit", async (event) => {
    event.preventDefault();
    const form = new FormData(event.target);
    const json = { result: form.get("result"), collected_on: form.get("collected_on") || null };
    say(byId("pcr-refused"), "");
    const { id } = current;
    try {
      const answer = await ask(`answers/${id}/pcr`, { method: "PUT", json });
      if (current?.id === id) whenSaved(answer);
    } catch (error) {
      say(byId("pcr-refused"), error.text ?? String(error));
    }
  });
}

/** Discards input that was not saved. */
export function closePcr() {
  current = null;
}

const SOURCES = { entered: "entered by ", laboratory: "found in the laboratory's results" };

export function showPcr(answer) {
  const isOther = current?.id !== answer.id;
  const isNew = isOther || JSON.stringify(current.pcr) !== JSON.stringify(answer.pcr);
  current = answer;
  if (!isNew) return; // keep the user's input
  const form = byId("pcr-form");
  if (isOther) form.reset();
  say(byId("pcr-refused"), "");
  const { pcr } = answer;
  const says = byId("pcr-says");
  if (!pcr) {
    says.replaceChildren("Unknown.");
    return;
  }
  form.elements.result.value = pcr.result;
  form.elements.collected_on.value = pcr.collected_on ?? "";
  says.replaceChildren(
    element("strong", {}, pcr.result.charAt(0).toUpperCase() + pcr.result.slice(1)),
    ...(pcr.collected_on ? [", specimen of ", day(pcr.collected_on)] : []),
    `; ${SOURCES[pcr.source]}`,
    ...(pcr.source === "entered" ? [outside(pcr.by)] : []),
    ".",
    ...(countingPcr(answer) ? [] : [" ", element("strong", { className: "flag" }, outsideText(pcr.timing))]),
  );
}

/** The PCR result that counts for this scan; null if there is none, or if its specimen is outside of the window. */
export const countingPcr = ({ pcr }) => (pcr && !pcr.timing?.is_outside ? pcr : null);

const distance = (days) => (days === 0 ? "the day of the CT" : `${Math.abs(days)} ${Math.abs(days) === 1 ? "day" : "days"} ${days < 0 ? "before" : "after"} the CT`);

const outsideText = ({ days_from_ct: days, window }) =>
  `The specimen is of ${distance(days)}. It does not count for this scan: the window is from ${distance(window.from_days)} to ${distance(window.to_days)}.`;
