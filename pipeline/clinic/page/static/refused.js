// Images of a scan without a score, beside the reason, and the measures of its lungs, which need no model.

import { ask } from "./api.js";
import { byId, element, say, show } from "./dom.js";
import { showMeasures } from "./facts.js";
import { Slices, placeOf } from "./slices.js";
import { OVERLAYS, PLANES } from "./words.js";

const OPACITY = 0.7; // of an overlay

/** Removes all images: they must never appear beside another patient's name. */
export function closeRefused() {
  for (const figure of byId("refused-tiles").querySelectorAll("figure")) figure.replaceChildren();
  for (const id of ["refused-sliders", "refused-overlays", "refused-measures"]) byId(id).replaceChildren();
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
  const choice = element("select", { ariaLabel: "Overlay" });
  for (const kind of ["none", "lungs", "opacities"]) choice.append(new Option(OVERLAYS[kind], kind));
  const sliders = Object.entries(planes).map(([plane, about]) => slider(slices, plane, about, () => choice.value));
  byId("refused-sliders").replaceChildren(...sliders.map(({ label }) => label));
  if (!lungs) return;
  choice.addEventListener("change", () => sliders.forEach(({ move }) => move()));
  byId("refused-overlays").replaceChildren(element("label", {}, "Overlay ", choice));
  showMeasures(byId("refused-measures"), lungs);
}

function slider(slices, plane, about, overlay) {
  const input = element("input", { type: "range", min: 0, max: about.count - 1, value: about.start });
  const place = element("output");
  const move = () => {
    const index = Number(input.value);
    say(place, placeOf(index, about));
    slices.show(plane, index, overlay(), OPACITY);
  };
  input.addEventListener("input", move);
  move();
  return { label: element("label", {}, element("span", {}, PLANES[plane], " ", place), input), move };
}
