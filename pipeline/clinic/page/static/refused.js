// Images of a scan without a score, beside the reason, and the measures of its lungs, which need no model.

import { ask } from "./api.js";
import { byId, element, say, show } from "./dom.js";
import { showMeasures } from "./facts.js";
import { Slices, onWheel, placeOf } from "./slices.js";
import { OVERLAYS, PLANES, WINDOWS } from "./words.js";

const OPACITY = 0.7; // of an overlay

let shown = null; // the slices, sliders and window of the job that is shown

/** Removes all images: they must never appear beside another patient's name. */
export function closeRefused() {
  shown = null;
  for (const figure of byId("refused-tiles").querySelectorAll("figure")) figure.replaceChildren();
  for (const id of ["refused-sliders", "refused-controls", "refused-measures"]) byId(id).replaceChildren();
  show(byId("refused"), false);
}

/** Shows the slices of a job without a score, if it has any. `isCurrent`: whether the job is still open. */
export async function showRefused(job, isCurrent) {
  if (!job.has_pictures) return;
  const base = `jobs/${job.id}/slices`;
  const [planes, { lungs }] = await Promise.all([ask(base), ask(`jobs/${job.id}/lungs`)]);
  if (!isCurrent()) return;
  show(byId("refused"), true);
  const slices = new Slices(byId("refused-tiles"), base, planes);
  const overlay = chooser("Overlay", ["none", "lungs", "opacities"], OVERLAYS);
  const window = chooser("Window", Object.keys(WINDOWS), WINDOWS);
  const draw = (plane, index) => slices.show(plane, index, overlay.value, OPACITY, window.value);
  const sliders = Object.fromEntries(Object.entries(planes).map(([plane, about]) => [plane, slider(plane, about, draw)]));
  shown = { slices, sliders, window };
  byId("refused-sliders").replaceChildren(...Object.values(sliders).map(({ label }) => label));
  const choices = lungs ? [overlay, window] : [window];
  for (const choice of choices) choice.addEventListener("change", () => Object.values(sliders).forEach(({ move }) => move()));
  byId("refused-controls").replaceChildren(...choices.map((choice) => element("label", {}, `${choice.ariaLabel} `, choice)));
  if (lungs) showMeasures(byId("refused-measures"), lungs);
}

function chooser(ariaLabel, values, words) {
  return element("select", { ariaLabel }, ...values.map((value) => new Option(words[value], value)));
}

function slider(plane, about, draw) {
  const input = element("input", { type: "range", min: 0, max: about.count - 1, value: about.start });
  const place = element("output");
  const move = (by = 0) => {
    input.value = Number(input.value) + by; // the browser keeps it in its range
    say(place, placeOf(Number(input.value), about));
    draw(plane, Number(input.value));
  };
  input.addEventListener("input", () => move());
  move();
  return { label: element("label", {}, element("span", {}, PLANES[plane], " ", place), input), move };
}

export function startRefused() {
  onWheel(byId("refused-tiles"), (plane, by) => shown?.sliders[plane].move(by));
  byId("state-print").addEventListener("click", async () => {
    await shown?.slices.settled();
    print();
  });
}

/** Selects the next window, for a keyboard shortcut. */
export function nextRefusedWindow() {
  if (!shown) return;
  const { window } = shown;
  window.selectedIndex = (window.selectedIndex + 1) % window.options.length;
  window.dispatchEvent(new Event("change"));
}
