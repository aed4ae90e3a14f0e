// The mask of the lungs on its grid: the labels that a reader changes by hand, and what the table counts of them.

import { readNifti } from "./nifti.js";

const LABELS = "labels.nii.gz";
const NO_SIDE = 0;
const SIDES = { right: 1, left: 2 };
const COUNTING = { counts: 1, never: 2 }; // 0: by its density, but not in the outermost layer
const COUNTING_STEP = 4;
const DENSITY_STEP = 16;
const BASE64_STEP = 0x8000; // characters at a time: a call cannot have more arguments

const sideOf = (label) => label & 3;
const countingOf = (label) => (label >> 2) & 3;
const densityOf = (label) => label >> 4;

/** What each brush makes of a label. The density of a voxel is the scan's: no brush changes it. */
const BRUSHES = {
  right: (label) => onSide(label, SIDES.right),
  left: (label) => onSide(label, SIDES.left),
  counts: (label) => counting(label, COUNTING.counts),
  never: (label) => counting(label, COUNTING.never),
  outside: (label) => densityOf(label) * DENSITY_STEP + NO_SIDE,
};
const onSide = (label, side) => label - sideOf(label) + side;
const counting = (label, how) => (sideOf(label) ? sideOf(label) + how * COUNTING_STEP + densityOf(label) * DENSITY_STEP : label);

export class Mask {
  /** Loads an answer's mask by the model, and that of its newest decision if it corrected the mask. */
  static async load({ id, score, decision }) {
    const base = `answers/${id}`;
    const byHand = decision?.correction.mask ? [`${base}/decisions/${decision.id}/files/${LABELS}`] : [];
    const [model, corrected = model] = await Promise.all([`${base}/files/${LABELS}`, ...byHand].map(readNifti));
    return new Mask(model, corrected.voxels.slice(), score.lungs.voxel_ml);
  }

  constructor({ size, voxels }, labels, voxelMl) {
    [this.columns, this.rows, this.slices] = size;
    this.voxelMl = voxelMl;
    this.model = voxels;
    this.labels = labels;
    this.undone = [];
    this.done = []; // strokes: pairs of places and labels before
  }

  at = (column, row, slice) => column + this.columns * (row + this.rows * slice);

  get changed() {
    return this.labels.reduce((sum, label, i) => sum + (label !== this.model[i]), 0);
  }

  // --- painting ---

  begin() {
    this.stroke = new Map();
  }

  /** Paints a disc of `diameter` voxels in one slice. */
  paint(brush, column, row, slice, diameter) {
    const reach = Math.floor(diameter / 2);
    const most = (diameter / 2) ** 2;
    for (let y = Math.max(0, row - reach); y <= Math.min(this.rows - 1, row + reach); y++) {
      for (let x = Math.max(0, column - reach); x <= Math.min(this.columns - 1, column + reach); x++) {
        if ((x - column) ** 2 + (y - row) ** 2 <= most) this.#set(this.at(x, y, slice), BRUSHES[brush]);
      }
    }
  }

  /** Makes the mask the model's own again; this can be undone. */
  reset() {
    this.begin();
    this.labels.forEach((_, i) => this.#set(i, () => this.model[i]));
    return this.end();
  }

  #set(i, change) {
    const before = this.labels[i];
    const label = change(before);
    if (label === before) return;
    if (!this.stroke.has(i)) this.stroke.set(i, before);
    this.labels[i] = label;
  }

  /** Ends a stroke; returns whether it changed something. */
  end() {
    const { stroke } = this;
    this.stroke = null;
    if (!stroke?.size) return false;
    this.done.push(stroke);
    this.undone = [];
    return true;
  }

  undo = () => this.#swap(this.done, this.undone);
  redo = () => this.#swap(this.undone, this.done);

  /** Takes the last stroke back; returns its slice, or null if there is none. */
  #swap(from, to) {
    const stroke = from.pop();
    if (!stroke) return null;
    const now = new Map([...stroke.keys()].map((i) => [i, this.labels[i]]));
    for (const [i, label] of stroke) this.labels[i] = label;
    to.push(now);
    return Math.floor(stroke.keys().next().value / (this.columns * this.rows));
  }

  // --- counting, as the service does it ---

  /** Whether the shares refer to a voxel: the outermost layer of a lung does not count, unless disease was seen in it. */
  #isMeasured(i) {
    const label = this.labels[i];
    if (!sideOf(label)) return false;
    if (countingOf(label) === COUNTING.counts) return true;
    const [x, y] = [i % this.columns, Math.floor(i / this.columns) % this.rows];
    const plane = this.columns * this.rows;
    if (x === 0 || y === 0 || x === this.columns - 1 || y === this.rows - 1) return false;
    if (i < plane || i >= this.labels.length - plane) return false;
    return [1, this.columns, plane].every((step) => sideOf(this.labels[i - step]) && sideOf(this.labels[i + step]));
  }

  /** What a voxel counts as: 0 nothing, 1 ground glass, 2 consolidation. */
  countedAs(i) {
    return countingOf(this.labels[i]) !== COUNTING.never && this.#isMeasured(i) ? densityOf(this.labels[i]) : 0;
  }

  sideAt = (i) => sideOf(this.labels[i]);

  /** Returns millilitres of each lung, and the shares of both by density; a preview of what the service computes. */
  figures() {
    const voxels = [0, 0, 0];
    const dense = [0, 0, 0];
    let measured = 0;
    for (let i = 0; i < this.labels.length; i++) {
      const side = sideOf(this.labels[i]);
      if (!side) continue;
      voxels[side]++;
      if (!this.#isMeasured(i)) continue;
      measured++;
      dense[this.countedAs(i)]++;
    }
    const share = (count) => (measured ? count / measured : null);
    return { rightMl: voxels[1] * this.voxelMl, leftMl: voxels[2] * this.voxelMl, glass: share(dense[1]), consolidation: share(dense[2]) };
  }

  // --- sending ---

  /** Returns the mask as the API takes it. */
  async entry() {
    const changes = this.labels.map((label, i) => label ^ this.model[i]);
    const packed = await new Response(new Blob([changes]).stream().pipeThrough(new CompressionStream("deflate"))).arrayBuffer();
    const content = new Uint8Array(packed);
    let text = "";
    for (let i = 0; i < content.length; i += BASE64_STEP) text += String.fromCharCode(...content.subarray(i, i + BASE64_STEP));
    return { shape: [this.slices, this.rows, this.columns], changes: btoa(text) };
  }
}
