// The dialog in which a reader corrects the mask of the lungs, in axial slices, with pointer or keyboard.

import { address } from "./api.js";
import { byId, element, roughly, say } from "./dom.js";
import { BRUSHES, WINDOWS } from "./words.js";

const CELL = 5; // pixels of the service's picture for each side of a voxel
const MOST_DIAMETER = 25;
const MANY_SLICES = 10; // with Shift
const NOTCH = 100; // pixels of scrolling for one slice
// Red, green, blue and opacity (0 to 255) of each side, and of what counts as ground glass and as consolidation.
const SIDE_COLOURS = [null, [0, 200, 255, 46], [120, 255, 150, 46]];
const DENSE_COLOURS = [null, [255, 200, 60, 140], [214, 30, 120, 150]];
const SIDE_WORDS = ["outside the lungs", "right lung", "left lung"];
const DENSE_WORDS = ["", ", counted as ground glass", ", counted as consolidation"];

let open = null; // the mask that is edited: { mask, base, slice, column, row, last }
let whenClosed = () => {};
let rest = 0; // of the wheel

export function startMaskEditor() {
  byId("mask-brushes").append(
    ...Object.entries(BRUSHES).map(([brush, { title }], i) =>
      element("label", {}, element("input", { type: "radio", name: "brush", value: brush, checked: i === 0 }), ` ${title} `, element("kbd", {}, String(i + 1))),
    ),
  );
  byId("mask-window").append(...Object.entries(WINDOWS).map(([value, title]) => element("option", { value }, title)));
  byId("mask-diameter").max = MOST_DIAMETER;
  byId("mask-brushes").addEventListener("change", sayBrush);
  byId("mask-diameter").addEventListener("input", () => open && draw());
  byId("mask-slice").addEventListener("input", ({ target }) => open && go(Number(target.value)));
  byId("mask-window").addEventListener("change", () => open && loadScan());
  byId("mask-shown").addEventListener("change", () => open && draw());
  byId("mask-undo").addEventListener("click", () => swap("undo"));
  byId("mask-redo").addEventListener("click", () => swap("redo"));
  byId("mask-reset").addEventListener("click", () => open?.mask.reset() && changed());
  byId("mask-editor").addEventListener("close", closed);
  const canvas = byId("mask-canvas");
  canvas.addEventListener("keydown", onKey);
  canvas.addEventListener("pointerdown", onDown);
  canvas.addEventListener("pointermove", onMove);
  for (const end of ["pointerup", "pointercancel"]) canvas.addEventListener(end, onUp);
  canvas.addEventListener("wheel", onWheel, { passive: false });
  byId("mask-editor").addEventListener("keydown", onUndoKey);
}

/** Opens the dialog; `done()` is called when it closes. The changes stay in `mask`; nothing is stored. */
export function openMaskEditor(answerId, mask, done) {
  const middle = [mask.columns, mask.rows].map((size) => Math.floor(size / 2));
  open = { mask, base: `answers/${answerId}/mask`, slice: firstSlice(mask), column: middle[0], row: middle[1], scan: null };
  whenClosed = done;
  const canvas = byId("mask-canvas");
  [canvas.width, canvas.height] = [mask.columns * CELL, mask.rows * CELL];
  byId("mask-slice").max = mask.slices - 1;
  byId("mask-editor").showModal();
  sayBrush();
  go(open.slice);
  changed();
  canvas.focus();
}

/** The slice with the most dense lung, else with the most lung. */
function firstSlice(mask) {
  const weights = new Array(mask.slices).fill(0);
  const plane = mask.columns * mask.rows;
  mask.labels.forEach((_, i) => (weights[Math.floor(i / plane)] += mask.sideAt(i) ? 1 + 100 * (mask.countedAs(i) > 0) : 0));
  return weights.indexOf(Math.max(...weights));
}

function closed() {
  open = null;
  const canvas = byId("mask-canvas");
  canvas.getContext("2d").clearRect(0, 0, canvas.width, canvas.height); // never beside another patient's name
  whenClosed();
}

const brush = () => byId("mask-brushes").querySelector(":checked").value;
const diameter = () => Number(byId("mask-diameter").value);

const sayBrush = () => say(byId("mask-brush-says"), BRUSHES[brush()].says);

// --- slices ---------------------------------------------------------------------------------------

function go(slice) {
  open.slice = Math.max(0, Math.min(open.mask.slices - 1, slice));
  byId("mask-slice").value = open.slice;
  say(byId("mask-place"), `${open.slice + 1} of ${open.mask.slices}`);
  open.scan = null;
  draw();
  loadScan();
}

/** Loads the scan under the slice; a picture that comes late is dropped. */
async function loadScan() {
  const mine = open;
  const url = address(`${mine.base}/${mine.slice}.png?window=${byId("mask-window").value}`);
  mine.wanted = url;
  const image = new Image();
  image.src = url;
  await image.decode().catch(() => {});
  if (open !== mine || mine.wanted !== url) return;
  mine.scan = image.naturalWidth ? image : null;
  draw();
}

// --- drawing --------------------------------------------------------------------------------------

function draw() {
  const { scan } = open;
  const canvas = byId("mask-canvas");
  const pen = canvas.getContext("2d");
  pen.imageSmoothingEnabled = true;
  pen.fillStyle = "#000";
  pen.fillRect(0, 0, canvas.width, canvas.height);
  if (scan) pen.drawImage(scan, 0, 0, canvas.width, canvas.height);
  if (byId("mask-shown").checked) drawMask(pen);
  pen.fillStyle = "#fff";
  pen.fillText("R", CELL, canvas.height / 2);
  pen.fillText("L", canvas.width - 3 * CELL, canvas.height / 2);
  drawBrush(pen);
}

function drawMask(pen) {
  const { mask, slice } = open;
  const over = new ImageData(mask.columns, mask.rows);
  for (let i = 0, at = mask.at(0, 0, slice); i < mask.columns * mask.rows; i++, at++) {
    over.data.set(DENSE_COLOURS[mask.countedAs(at)] ?? SIDE_COLOURS[mask.sideAt(at)] ?? [0, 0, 0, 0], 4 * i);
  }
  const small = new OffscreenCanvas(mask.columns, mask.rows);
  small.getContext("2d").putImageData(over, 0, 0);
  pen.imageSmoothingEnabled = false;
  pen.drawImage(small, 0, 0, pen.canvas.width, pen.canvas.height);
}

function drawBrush(pen) {
  pen.strokeStyle = "#fff";
  pen.beginPath();
  pen.arc((open.column + 0.5) * CELL, (open.row + 0.5) * CELL, (diameter() / 2) * CELL, 0, 2 * Math.PI);
  pen.stroke();
}

/** Says what is under the brush, for screen readers and for checking. */
function sayPlace() {
  const { mask, column, row, slice } = open;
  const at = mask.at(column, row, slice);
  say(byId("mask-says"), `Column ${column + 1}, row ${row + 1}: ${SIDE_WORDS[mask.sideAt(at)]}${DENSE_WORDS[mask.countedAs(at)]}.`);
}

/** Says what follows from the mask after a change. */
function changed() {
  const { mask } = open;
  const { rightMl, leftMl, glass, consolidation } = mask.figures();
  const count = mask.changed;
  say(byId("mask-figures"), `Right ${Math.round(rightMl)} mL, left ${Math.round(leftMl)} mL; both: ${roughly(glass)} ground glass, ${roughly(consolidation)} consolidation. ${count ? `${count} voxels changed.` : "As the model outlined it."}`);
  byId("mask-undo").disabled = !mask.done.length;
  byId("mask-redo").disabled = !mask.undone.length;
  byId("mask-reset").disabled = !count;
  draw();
  sayPlace();
}

function swap(which) {
  const slice = open?.mask[which]();
  if (slice === null || slice === undefined) return;
  if (slice !== open.slice) go(slice);
  changed();
}

// --- pointer --------------------------------------------------------------------------------------

function placeUnder({ clientX, clientY }) {
  const canvas = byId("mask-canvas");
  const box = canvas.getBoundingClientRect();
  const within = (share, size) => Math.max(0, Math.min(size - 1, Math.floor(share * size)));
  return [within((clientX - box.left) / box.width, open.mask.columns), within((clientY - box.top) / box.height, open.mask.rows)];
}

function onDown(event) {
  if (!open || event.button !== 0) return;
  byId("mask-canvas").setPointerCapture(event.pointerId);
  [open.column, open.row] = placeUnder(event);
  open.isPainting = true;
  open.mask.begin();
  paintHere();
}

function onMove(event) {
  if (!open) return;
  const [column, row] = placeUnder(event);
  if (open.isPainting) {
    const [fromColumn, fromRow] = [open.column, open.row];
    const steps = Math.max(Math.abs(column - fromColumn), Math.abs(row - fromRow), 1);
    for (let step = 1; step <= steps; step++) {
      open.column = Math.round(fromColumn + ((column - fromColumn) * step) / steps);
      open.row = Math.round(fromRow + ((row - fromRow) * step) / steps);
      open.mask.paint(brush(), open.column, open.row, open.slice, diameter());
    }
  }
  [open.column, open.row] = [column, row];
  draw();
}

function onUp() {
  if (!open?.isPainting) return;
  open.isPainting = false;
  open.mask.end();
  changed();
}

function onWheel(event) {
  if (!open || event.ctrlKey) return; // with Ctrl it is the browser's zoom
  event.preventDefault();
  rest -= event.deltaMode === 0 ? event.deltaY : Math.sign(event.deltaY) * NOTCH;
  const steps = Math.trunc(rest / NOTCH);
  rest -= steps * NOTCH;
  if (steps && !open.isPainting) go(open.slice + steps);
}

function paintHere() {
  open.mask.paint(brush(), open.column, open.row, open.slice, diameter());
  draw();
}

// --- keyboard -------------------------------------------------------------------------------------

const MOVES = { ArrowUp: [0, -1], ArrowDown: [0, 1], ArrowLeft: [-1, 0], ArrowRight: [1, 0] };

function onKey(event) {
  if (!open || open.isPainting || event.ctrlKey || event.altKey || event.metaKey) return;
  const done = onMoveKey(event) || onOtherKey(event);
  if (done) event.preventDefault();
}

/** Arrows move the brush, and paint while Shift is held. */
function onMoveKey({ key, shiftKey }) {
  if (!MOVES[key]) return false;
  const [across, down] = MOVES[key];
  const { mask } = open;
  open.column = Math.max(0, Math.min(mask.columns - 1, open.column + across));
  open.row = Math.max(0, Math.min(mask.rows - 1, open.row + down));
  if (shiftKey) paintOnce();
  draw();
  sayPlace();
  return true;
}

function onOtherKey({ key, shiftKey }) {
  const named = byId("mask-brushes").querySelectorAll("input")[Number(key) - 1];
  const slices = { PageUp: 1, PageDown: -1 }[key];
  const wider = { "+": 1, "-": -1 }[key];
  if (named) {
    named.checked = true;
    sayBrush();
  } else if (slices) {
    go(open.slice + slices * (shiftKey ? MANY_SLICES : 1));
    sayPlace();
  } else if (wider) {
    byId("mask-diameter").value = diameter() + wider;
    draw();
  } else if (key === "h") {
    byId("mask-shown").click();
  } else if (key === " ") {
    paintOnce();
  } else {
    return false;
  }
  return true;
}

function paintOnce() {
  open.mask.begin();
  open.mask.paint(brush(), open.column, open.row, open.slice, diameter());
  if (open.mask.end()) changed();
}

function onUndoKey(event) {
  if (!event.ctrlKey && !event.metaKey) return;
  const which = { z: event.shiftKey ? "redo" : "undo", y: "redo" }[event.key.toLowerCase()];
  if (!which) return;
  event.preventDefault();
  swap(which);
}
