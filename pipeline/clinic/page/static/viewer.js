// The images of one answer: slices at once, the full viewer over them as soon as it is ready, and their controls.

import { ask } from "./api.js";
import { byId, element, painted, say, show } from "./dom.js";
import { saliencyText } from "./facts.js";
import { Slices, placeOf } from "./slices.js";
import { NoViewer, Volumes } from "./volumes.js";
import { LABELS, OVERLAYS, PLANES } from "./words.js";

const PRINT_AFTER_MS = 500; // the slices for printing follow the viewer after this pause
const NOT_FOR_DIAGNOSIS = "Reduced resolution, not for diagnosis: read the original scan in the PACS.";

let state = null; // of the answer that is shown
let resting = null;
let drawing = null;

export function startViewer() {
  byId("fade").addEventListener("input", drawOverlaySoon);
  byId("overlays").addEventListener("change", drawOverlay);
  byId("window").addEventListener("change", () => state?.volumes?.setWindow(byId("window").value));
  byId("tiles").addEventListener("keydown", onKey);
  new ResizeObserver(() => state?.volumes?.arrange()).observe(byId("tiles"));
}

/** Removes all images: they must never appear beside another patient's name while others load. */
export function closeViewer() {
  state = null;
  for (const figure of byId("tiles").querySelectorAll("figure")) figure.replaceChildren();
  byId("sliders").replaceChildren();
  for (const id of ["overlay-says", "viewer-says"]) say(byId(id), "");
  show(byId("stage"), false);
  byId("tiles").classList.remove("live");
}

/** Shows the images of an answer; resolves when the first slices are loaded. `isCurrent`: whether it is still open. */
export async function openViewer(answer, isCurrent) {
  closeViewer();
  const base = `answers/${answer.id}/slices`;
  const planes = await ask(base);
  if (!isCurrent()) return;
  const mine = { answer, planes, index: {}, slices: new Slices(byId("tiles"), base, planes), volumes: null };
  state = mine;
  drawControls();
  for (const plane of Object.keys(planes)) move(plane, planes[plane].start);
  drawOverlay();
  say(byId("viewer-says"), NOT_FOR_DIAGNOSIS);
  await mine.slices.settled();
  openVolumes(mine);
}

async function openVolumes(mine) {
  await painted(); // starting WebGL may block the page, for seconds if rendering is done in software
  if (state !== mine) return;
  try {
    const volumes = await Volumes.open(mine.answer.id, mine.answer.files, (place) => state === mine && moved(place));
    if (state !== mine) return;
    show(byId("stage"), true);
    mine.volumes = volumes;
    volumes.arrange();
    byId("window").value = "lung";
    show(byId("window-label"), true);
    volumes.move(shares());
    drawOverlay();
    await volumes.drawn();
    if (state === mine) byId("tiles").classList.add("live"); // keep the slices until the viewer has drawn
  } catch (error) {
    if (state !== mine) return;
    show(byId("stage"), false);
    byId("tiles").classList.remove("live");
    mine.volumes = null;
    const isForeseen = error instanceof NoViewer;
    if (!isForeseen) console.error(error);
    const why = isForeseen ? error.message : "Single slices are shown: the full viewer did not start.";
    say(byId("viewer-says"), `${why} ${NOT_FOR_DIAGNOSIS}`);
  }
}

function drawControls() {
  const { planes, answer } = state;
  byId("sliders").replaceChildren(
    ...Object.entries(planes).map(([plane, { count }]) => {
      const slider = element("input", { type: "range", id: `slider-${plane}`, min: 0, max: count - 1 });
      slider.addEventListener("input", () => move(plane, Number(slider.value)));
      const place = element("output", { id: `place-${plane}`, htmlFor: slider.id });
      return element("label", {}, element("span", {}, PLANES[plane], " ", place), slider);
    }),
  );
  const offered = ["none", "lungs", ...(answer.score.lungs?.are_marked ? ["opacities"] : []), ...(answer.score.saliency?.shown ? ["saliency"] : [])];
  const fieldset = byId("overlays");
  const first = offered.at(-1) === "saliency" ? "saliency" : "none";
  fieldset.replaceChildren(
    fieldset.querySelector("legend"),
    ...offered.map((overlay) =>
      element(
        "label",
        {},
        element("input", { type: "radio", name: "overlay", value: overlay, checked: overlay === first }),
        ` ${OVERLAYS[overlay]}`,
      ),
    ),
  );
  show(byId("window-label"), false); // the service's slices have only the lung window
}

const overlay = () => byId("overlays").querySelector(":checked").value;
const opacity = () => Number(byId("fade").value) / 100;

/** Draws at most once per screen frame, however fast a slider is dragged. */
function drawOverlaySoon() {
  cancelAnimationFrame(drawing);
  drawing = requestAnimationFrame(drawOverlay);
}

function drawOverlay() {
  if (!state) return;
  const { score } = state.answer;
  byId("fade").disabled = overlay() === "none";
  const label = score.saliency?.label;
  const lungs = "The lungs as detected: if the outline is wrong, the numbers may be wrong too.";
  const opacities = "Counted in the table: ground glass in yellow, consolidation in magenta.";
  const text = { opacities, none: score.saliency?.shown ? "" : saliencyText(score, ""), lungs, saliency: saliencyText(score, LABELS[label]?.title ?? "") };
  say(byId("overlay-says"), text[overlay()]);
  byId("overlay-says").dataset.overlay = overlay();
  state.volumes?.setOverlay(overlay(), opacity());
  drawSlices();
}

function drawSlices() {
  for (const plane of Object.keys(state.planes)) state.slices.show(plane, state.index[plane], overlay(), opacity());
}

/** Returns the centre of each plane's slice as a share of the volume. */
const shares = () => Object.fromEntries(Object.entries(state.planes).map(([plane, { count }]) => [plane, (state.index[plane] + 0.5) / count]));

function setIndex(plane, index) {
  const about = state.planes[plane];
  const kept = Math.max(0, Math.min(about.count - 1, index));
  state.index[plane] = kept;
  byId(`slider-${plane}`).value = kept;
  say(byId(`place-${plane}`), placeOf(kept, about));
}

/** Moves to another slice of one plane, by slider or key. */
function move(plane, index) {
  setIndex(plane, index);
  if (state.volumes) {
    state.volumes.move(shares());
    followLater();
  } else {
    state.slices.show(plane, state.index[plane], overlay(), opacity());
  }
}

/** Follows the viewer's crosshair after the mouse moved it. */
function moved(place) {
  for (const [plane, share] of Object.entries(place)) setIndex(plane, Math.floor(share * state.planes[plane].count));
  followLater();
}

function followLater() {
  clearTimeout(resting);
  resting = setTimeout(() => state && drawSlices(), PRINT_AFTER_MS);
}

/** Loads the slices that are on the screen, for printing. */
export async function readyToPrint() {
  if (!state) return;
  drawSlices();
  await state.slices.settled();
}

const STEPS = {
  ArrowUp: ["axial", 1],
  ArrowDown: ["axial", -1],
  PageUp: ["axial", 10],
  PageDown: ["axial", -10],
  ArrowLeft: ["sagittal", -1],
  ArrowRight: ["sagittal", 1],
};

function onKey(event) {
  const step = STEPS[event.key];
  if (!step || !state || event.ctrlKey || event.altKey || event.metaKey) return;
  event.preventDefault();
  event.stopPropagation();
  const [plane, by] = event.shiftKey && step[0] === "axial" ? ["coronal", step[1]] : step;
  move(plane, state.index[plane] + by);
}

/** Selects the next overlay, for a keyboard shortcut. */
export function nextOverlay() {
  const choices = [...byId("overlays").querySelectorAll("input")];
  if (!choices.length) return;
  choices[(choices.findIndex(({ checked }) => checked) + 1) % choices.length].checked = true;
  drawOverlay();
}

export function fade(by) {
  const slider = byId("fade");
  slider.value = Number(slider.value) + by;
  drawOverlay();
}

export function nextWindow() {
  const select = byId("window");
  if (!state?.volumes) return;
  select.selectedIndex = (select.selectedIndex + 1) % select.options.length;
  state.volumes.setWindow(select.value);
}
