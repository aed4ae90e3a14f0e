// The images of one answer: slices at once, the full viewer over them as soon as it is ready, and their controls.

import { ask } from "./api.js";
import { byId, element, painted, personName, say, show } from "./dom.js";
import { saliencyText } from "./facts.js";
import { Slices, onWheel, placeOf } from "./slices.js";
import { NoViewer, Volumes, WINDOWS_HU } from "./volumes.js";
import { LABELS, OVERLAYS, OWN_WINDOW, PLANES } from "./words.js";

const PRINT_AFTER_MS = 500; // the slices for printing follow the viewer after this pause
const NOT_FOR_DIAGNOSIS = "Reduced resolution, not for diagnosis: read the original scan in the PACS.";

let state = null; // of the answer that is shown
let resting = null;
let drawing = null;

export function startViewer() {
  byId("fade").addEventListener("input", drawOverlaySoon);
  byId("overlays").addEventListener("change", drawOverlay);
  byId("window").addEventListener("change", () => state && setWindow(WINDOWS_HU[byId("window").value]));
  byId("tiles").addEventListener("keydown", onKey);
  onWheel(byId("tiles"), (plane, by) => state && move(plane, state.index[plane] + by));
  startWindowing(byId("stage"));
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
  const mine = { answer, planes, index: {}, slices: new Slices(byId("tiles"), base, planes), volumes: null, preset: "lung", windowHu: WINDOWS_HU.lung };
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
    const volumes = await Volumes.open(mine.answer, (place) => state === mine && moved(place));
    if (state !== mine) return;
    show(byId("stage"), true);
    mine.volumes = volumes;
    volumes.arrange();
    volumes.setWindow(mine.windowHu);
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
  const byHand = answer.decision?.correction.mask ? ["reader_lungs", "reader_opacities"] : [];
  const offered = ["none", "lungs", ...(answer.score.lungs?.are_marked ? ["opacities"] : []), ...byHand, ...(answer.score.saliency?.shown ? ["saliency"] : [])];
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
  byId("window").value = "lung";
  sayWindow();
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
  const by = state.answer.decision?.correction.mask ? `Corrected by hand by ${personName(state.answer.decision.person)}` : "";
  const corrected = { reader_lungs: `${by}: the lungs.`, reader_opacities: `${by}. ${opacities}` };
  const text = { ...corrected, opacities, none: score.saliency?.shown ? "" : saliencyText(score, ""), lungs, saliency: saliencyText(score, LABELS[label]?.title ?? "") };
  say(byId("overlay-says"), text[overlay()]);
  byId("overlay-says").dataset.overlay = overlay();
  state.volumes?.setOverlay(overlay(), opacity());
  drawSlices();
}

function drawSlices() {
  for (const plane of Object.keys(state.planes)) state.slices.show(plane, state.index[plane], overlay(), opacity(), state.preset);
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
    state.slices.show(plane, state.index[plane], overlay(), opacity(), state.preset);
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
  if (!state) return;
  const names = Object.keys(WINDOWS_HU);
  select.value = names[(names.indexOf(select.value) + 1) % names.length];
  setWindow(WINDOWS_HU[select.value]);
}

// --- the window -----------------------------------------------------------------------------------

const HU_PER_PIXEL = 2;
const LEAST_WIDTH_HU = 50;

/** Sets the window, in HU. The service's slices, and so the print, know only the named windows. */
function setWindow(windowHu) {
  state.windowHu = windowHu;
  const named = Object.keys(WINDOWS_HU).find((name) => WINDOWS_HU[name] === windowHu);
  state.preset = named ?? state.preset;
  byId("window").value = named ?? OWN_WINDOW;
  sayWindow();
  state.volumes?.setWindow(windowHu);
  if (named) drawSlices();
}

function sayWindow() {
  const [low, high] = state.windowHu.map(Math.round);
  say(byId("window-says"), `${low} to ${high} HU`);
}

/** Changes the window while the right button is held: to the right for a wider one, up for a lower, brighter one. */
function startWindowing(stage) {
  let from = null;
  const begin = (event) => {
    if (event.button !== 2 || !state?.volumes) return;
    event.stopPropagation(); // the viewer's library would draw a box
    from = { x: event.clientX, y: event.clientY, windowHu: state.windowHu };
  };
  stage.addEventListener("mousedown", begin, true);
  stage.addEventListener("contextmenu", (event) => event.preventDefault());
  addEventListener("mousemove", (event) => {
    if (!from || !state?.volumes) return;
    const [low, high] = from.windowHu;
    const width = Math.max(LEAST_WIDTH_HU, high - low + (event.clientX - from.x) * HU_PER_PIXEL);
    const centre = (low + high) / 2 + (event.clientY - from.y) * HU_PER_PIXEL;
    cancelAnimationFrame(drawing);
    drawing = requestAnimationFrame(() => state && setWindow([centre - width / 2, centre + width / 2]));
  });
  addEventListener("mouseup", () => (from = null));
}
