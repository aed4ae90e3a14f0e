// The images of one scan: slices at once, the full viewer over them as soon as it is ready, and their controls.

import { ask } from "./api.js";
import { byId, element, painted, say, show } from "./dom.js";
import { drag, drawDistance, isMeasuring, setEnd, setMeasuring, startDistance } from "./distance.js";
import { inPicture, inScan, sliceAt } from "./geometry.js";
import { onDrag, onWheel } from "./gestures.js";
import { drawnOverlay, isOutlined, offerOverlays, opacity, overlay, sayOverlay, startOverlays } from "./overlays.js";
import { Slices, placeOf } from "./slices.js";
import { NoViewer, Volumes } from "./volumes.js";
import { dragWindow, resetWindow, startWindowing, windowHu, windowQuery, windowText } from "./windowing.js";
import { PLANES } from "./words.js";

const PRINT_AFTER_MS = 500; // the slices for printing follow the viewer after this pause

let state = null; // of the scan that is shown
let resting = null;
let drawing = null;

export function startViewer() {
  startOverlays(() => {
    if (state) sayOverlay(state.scan); // at once: a slice may load before the next frame, and its legend must fit
    drawSoon();
  });
  startWindowing(drawSoon);
  startDistance(drawSoon);
  const tiles = byId("tiles");
  tiles.addEventListener("keydown", onKey);
  onWheel(tiles, (plane, by) => state && move(plane, state.index[plane] + by));
  onDrag(tiles, { left: onPointer, right: () => state && dragWindow() });
  new ResizeObserver(() => state && arrange()).observe(tiles);
}

/** Removes all images: they must never appear beside another patient's name while others load. */
export function closeViewer() {
  state = null;
  for (const figure of byId("tiles").querySelectorAll("figure")) figure.replaceChildren();
  byId("sliders").replaceChildren();
  for (const id of ["overlay-says", "viewer-says", "window-says", "distance"]) say(byId(id), "");
  setMeasuring(false);
  show(byId("images"), false);
  show(byId("stage"), false);
  byId("tiles").classList.remove("live");
}

/**
 * Shows the images of a scan; resolves when the first slices are loaded.
 *
 * `scan`: its address `base` in the API; `lungs`, which were measured; of an answer also `score`, `decision`, and the
 * `files` for the full viewer. `home`: the element that gets the images. `isCurrent`: whether the scan is still open.
 */
export async function openViewer(scan, home, isCurrent) {
  closeViewer();
  const planes = await ask(`${scan.base}/slices`);
  if (!isCurrent()) return;
  home.prepend(byId("images"));
  show(byId("images"), true);
  const index = Object.fromEntries(Object.entries(planes).map(([plane, { start }]) => [plane, start]));
  const mine = { scan, planes, index, slices: new Slices(byId("tiles"), `${scan.base}/slices`, planes), volumes: null };
  state = mine;
  offerOverlays(scan);
  sayOverlay(scan);
  drawSliders();
  resetWindow();
  for (const plane of Object.keys(planes)) setIndex(plane, index[plane]);
  draw();
  drawSlices();
  await mine.slices.settled();
  if (scan.files) openVolumes(mine);
}

async function openVolumes(mine) {
  await painted(); // starting WebGL may block the page, for seconds if rendering is done in software
  if (state !== mine) return;
  try {
    const volumes = await Volumes.open(mine.scan);
    if (state !== mine) return;
    show(byId("stage"), true);
    mine.volumes = volumes;
    arrange();
    draw();
    await volumes.drawn();
    if (state === mine) byId("tiles").classList.add("live"); // keep the slices until the viewer has drawn
  } catch (error) {
    if (state !== mine) return;
    show(byId("stage"), false);
    byId("tiles").classList.remove("live");
    mine.volumes = null;
    draw();
    const isForeseen = error instanceof NoViewer;
    if (!isForeseen) console.error(error);
    say(byId("viewer-says"), isForeseen ? error.message : "Single slices are shown: the full viewer did not start.");
  }
}

function drawSliders() {
  byId("sliders").replaceChildren(
    ...Object.entries(state.planes).map(([plane, { count }]) => {
      const slider = element("input", { type: "range", id: `slider-${plane}`, min: 0, max: count - 1 });
      slider.addEventListener("input", () => move(plane, Number(slider.value)));
      const place = element("output", { id: `place-${plane}`, htmlFor: slider.id });
      return element("label", {}, element("span", {}, PLANES[plane], " ", place), slider);
    }),
  );
}

// --- drawing --------------------------------------------------------------------------------------

/** Draws at most once per screen frame, however fast a slider is dragged. */
function drawSoon() {
  cancelAnimationFrame(drawing);
  drawing = requestAnimationFrame(draw);
}

function draw() {
  if (!state) return;
  const { volumes } = state;
  say(byId("window-says"), windowText());
  if (volumes) {
    volumes.setWindow(windowHu());
    volumes.setOverlay(isOutlined() ? "none" : overlay(), opacity());
    volumes.move(place());
    followLater();
  } else {
    drawSlices();
  }
  drawMarks();
}

function drawSlices() {
  for (const plane of Object.keys(state.planes)) state.slices.show(plane, state.index[plane], drawnOverlay(), opacity(), windowQuery());
}

function drawMarks() {
  for (const [plane, share] of Object.entries(place())) {
    const marks = state.slices.marks(plane);
    marks.showCrosshair(inPicture(plane, place()));
    marks.showOutlines(isOutlined() && state.volumes ? state.volumes.outlines.of(overlay(), plane, share) : [], opacity());
  }
  drawDistance({ ...state, place: place() });
}

/** Fits everything to the size of the figures. */
function arrange() {
  state.volumes?.arrange(state.planes);
  drawMarks();
}

/** Loads the slices that are on the screen a little later, for printing. */
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

// --- moving ---------------------------------------------------------------------------------------

/** The centre of the three slices: where the planes cross. */
const place = () => Object.fromEntries(Object.entries(state.planes).map(([plane, { count }]) => [plane, (state.index[plane] + 0.5) / count]));

function setIndex(plane, index) {
  const about = state.planes[plane];
  const kept = Math.max(0, Math.min(about.count - 1, index));
  state.index[plane] = kept;
  byId(`slider-${plane}`).value = kept;
  say(byId(`place-${plane}`), placeOf(kept, about));
  byId("tiles").querySelector(`[data-plane=${plane}]`).dataset.place = `${PLANES[plane]} ${kept + 1} of ${about.count}`;
}

/** Moves to another slice of one plane, by slider, wheel or key. */
function move(plane, index) {
  setIndex(plane, index);
  drawSoon();
}

/** Lets the other planes follow to the place under the mouse, or measures from where it was pressed. */
function onPointer(plane, event, isStart) {
  if (!state) return;
  const there = inScan(plane, state.slices.marks(plane).pointAt(event), place());
  if (isMeasuring()) drag(there, isStart);
  else for (const [other, { count }] of Object.entries(state.planes)) setIndex(other, sliceAt(there[other], count));
  drawSoon();
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
  if (!state || event.ctrlKey || event.altKey || event.metaKey) return;
  const step = STEPS[event.key];
  const isEnd = event.key === "Enter" && isMeasuring();
  if (!step && !isEnd) return;
  event.preventDefault();
  event.stopPropagation();
  if (isEnd) {
    setEnd(place());
    drawSoon();
    return;
  }
  const [plane, by] = event.shiftKey && step[0] === "axial" ? ["coronal", step[1]] : step;
  move(plane, state.index[plane] + by);
}
