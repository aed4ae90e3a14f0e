// The window of the images: presets, level and width in HU as numbers, and the right mouse button.

import { byId, element } from "./dom.js";
import { OWN_WINDOW, WINDOWS, WINDOWS_HU } from "./words.js";

const HU_PER_PIXEL = 2;
const LEAST_WIDTH_HU = 50;
const LIMIT_HU = 4000; // of the level

let ends = WINDOWS_HU.lung;
let changed = () => {};

/** `whenChanged`: called after each change. */
export function startWindowing(whenChanged) {
  changed = whenChanged;
  const options = Object.entries(WINDOWS).map(([value, title]) => new Option(title, value));
  byId("window").replaceChildren(...options, element("option", { value: OWN_WINDOW, hidden: true }, "Adjusted"));
  byId("window").addEventListener("change", () => setWindow(WINDOWS_HU[byId("window").value]));
  for (const id of ["window-level", "window-width"]) {
    byId(id).addEventListener("change", () => {
      const [level, width] = [byId("window-level"), byId("window-width")].map(({ valueAsNumber }) => valueAsNumber);
      setWindow(Number.isNaN(level + width) ? ends : around(level, width));
    });
  }
}

/** The ends of the window, in HU. */
export const windowHu = () => ends;

/** The window as the service's slices take it: a name, or its ends. */
export const windowQuery = () => nameOf(ends) ?? ends.join(",");

export const windowText = () => `L ${(ends[0] + ends[1]) / 2} W ${ends[1] - ends[0]} HU`;

/** Sets the window of a scan that is opened. */
export const resetWindow = () => setWindow(WINDOWS_HU.lung);

/** Selects the next of the presets. */
export function nextWindow() {
  const names = Object.keys(WINDOWS_HU);
  setWindow(WINDOWS_HU[names[(names.indexOf(nameOf(ends)) + 1) % names.length]]);
}

/** Begins a drag with the right button; returns what each movement does: to the right wider, up lower and so brighter. */
export function dragWindow() {
  const [low, high] = ends;
  return (right, down) => setWindow(around((low + high) / 2 + down * HU_PER_PIXEL, high - low + right * HU_PER_PIXEL));
}

const nameOf = ([low, high]) => Object.keys(WINDOWS_HU).find((name) => WINDOWS_HU[name][0] === low && WINDOWS_HU[name][1] === high);

/** The ends of a window in whole HU, with its level in whole HU too. */
function around(level, width) {
  const centre = Math.round(Math.max(-LIMIT_HU, Math.min(LIMIT_HU, level)));
  const half = Math.round(Math.max(LEAST_WIDTH_HU, Math.min(2 * LIMIT_HU, width)) / 2);
  return [centre - half, centre + half];
}

function setWindow(windowEnds) {
  ends = windowEnds;
  byId("window").value = nameOf(ends) ?? OWN_WINDOW;
  byId("window-level").value = (ends[0] + ends[1]) / 2;
  byId("window-width").value = ends[1] - ends[0];
  changed();
}
