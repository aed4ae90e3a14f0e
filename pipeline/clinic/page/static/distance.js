// A distance between two places of the scan, in mm; measured with the mouse or, at the crosshair, with the keyboard.

import { byId, say } from "./dom.js";
import { distanceMm, inPicture, sliceAt } from "./geometry.js";

let ends = []; // none, one (the second follows the crosshair), or two places

export const isMeasuring = () => byId("measure").ariaPressed === "true";

/** `changed`: called when the marks must be drawn again. */
export function startDistance(changed) {
  byId("measure").addEventListener("click", () => {
    setMeasuring(!isMeasuring());
    changed();
  });
}

/** Begins or ends measuring; both remove what was measured. */
export function setMeasuring(isOn) {
  ends = [];
  byId("measure").ariaPressed = String(isOn);
  byId("tiles").classList.toggle("measuring", isOn);
}

/** Measures by a drag. */
export function drag(place, isStart) {
  ends = isStart ? [place, place] : [ends[0], place];
}

/** Sets the first or the second end at the crosshair. */
export function setEnd(place) {
  ends = ends.length === 1 ? [ends[0], place] : [place];
}

/** Draws the distance where both of its ends are in the slice that is shown, and says it. */
export function drawDistance({ planes, slices, place }) {
  const both = ends.length === 1 ? [ends[0], place] : ends;
  const text = both.length ? `${distanceMm(planes, ...both).toFixed(1)} mm` : "";
  for (const [plane, { count }] of Object.entries(planes)) {
    const isHere = both.length && [...both, place].every((each) => sliceAt(each[plane], count) === sliceAt(place[plane], count));
    slices.marks(plane).showDistance(isHere ? both.map((each) => inPicture(plane, each)) : null, text);
  }
  const hint = "Drag over an image, or press Enter in the images at each end.";
  say(byId("distance"), text ? `Distance ${text}` : isMeasuring() ? hint : "");
}
