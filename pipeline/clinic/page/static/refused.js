// Images of a scan without a score, beside the reason: single slices without any overlay.

import { ask } from "./api.js";
import { byId, element, say, show } from "./dom.js";
import { Slices, placeOf } from "./slices.js";
import { PLANES } from "./words.js";

/** Removes all images: they must never appear beside another patient's name. */
export function closeRefused() {
  for (const figure of byId("refused-tiles").querySelectorAll("figure")) figure.replaceChildren();
  byId("refused-sliders").replaceChildren();
  show(byId("refused"), false);
}

/** Shows the slices of a job without a score, if it has any. `isCurrent`: whether the job is still open. */
export async function showRefused(job, isCurrent) {
  if (!job.has_pictures) return;
  const base = `jobs/${job.id}/slices`;
  const planes = await ask(base);
  if (!isCurrent()) return;
  show(byId("refused"), true);
  const slices = new Slices(byId("refused-tiles"), base, planes);
  byId("refused-sliders").replaceChildren(...Object.entries(planes).map(([plane, about]) => slider(slices, plane, about)));
}

function slider(slices, plane, about) {
  const input = element("input", { type: "range", min: 0, max: about.count - 1, value: about.start });
  const place = element("output");
  const move = () => {
    const index = Number(input.value);
    say(place, placeOf(index, about));
    slices.show(plane, index, "none", 0);
  };
  input.addEventListener("input", move);
  move();
  return element("label", {}, element("span", {}, PLANES[plane], " ", place), input);
}
