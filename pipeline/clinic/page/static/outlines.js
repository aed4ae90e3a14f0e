// Outlines of a mask in the slices that are shown, drawn by the page over the full viewer, which only fills areas.

import { along } from "./geometry.js";
import { readNifti } from "./nifti.js";

const AXES = ["sagittal", "coronal", "axial"]; // of a volume: its columns, rows and slices
const FILL = 1; // all voxels of the lungs have this value

const column = (affine, axis) => affine.slice(0, 3).map((row) => row[axis]);
const dot = (a, b) => a.reduce((sum, value, i) => sum + value * b[i], 0);

/** The masks of one scan. `image`: size and affine of the volume that the full viewer shows. */
export class Outlines {
  /** `paths`: of the mask's file, by overlay. `colours`: by overlay, the colour of each value but 0. */
  static async open(paths, colours, image) {
    const masks = await Promise.all(Object.entries(paths).map(async ([overlay, path]) => [overlay, await readNifti(path)]));
    return new Outlines(Object.fromEntries(masks), colours, image);
  }

  constructor(masks, colours, image) {
    Object.assign(this, { masks, colours, image });
  }

  /** The outlines of an overlay in the slice of a plane at `share`, as `Marks.showOutlines` takes them. */
  of(overlay, plane, share) {
    const mask = this.masks[overlay];
    if (!mask) return [];
    const grids = Object.fromEntries(AXES.map((name, axis) => [name, this.#grid(mask, axis)]));
    const { x, y, fromHead } = along(plane);
    const slice = Math.floor((share - grids[plane].start) / grids[plane].step);
    if (slice < 0 || slice >= grids[plane].size) return [];
    const [across, down] = [grids[x], grids[y]];
    const rows = fromHead ? [-down.step, 1 - down.start] : [down.step, down.start];
    const transform = [across.step, rows[0], across.start, rows[1]];
    const at = (i, j) => (i < 0 || j < 0 || i >= across.size || j >= down.size ? 0 : mask.voxels[i * across.stride + j * down.stride + slice * grids[plane].stride]);
    return this.colours[overlay].map((colour, i) => ({ colour, transform, path: border(at, i + FILL, across.size, down.size) }));
  }

  /** Where the mask's voxels lie along one axis, in shares of the image: the edge of the first one, and their size. */
  #grid(mask, axis) {
    const [own, whole] = [mask.affine, this.image.affine].map((affine) => column(affine, axis));
    const offset = column(mask.affine, 3).map((mm, i) => mm - this.image.affine[i][3]);
    const length = Math.sqrt(dot(whole, whole));
    const step = dot(own, whole) / length ** 2; // in voxels of the image
    const first = dot(offset, whole) / length ** 2;
    const count = this.image.size[axis];
    const stride = mask.size.slice(0, axis).reduce((product, size) => product * size, 1);
    return { start: (first - step / 2 + 0.5) / count, step: step / count, size: mask.size[axis], stride };
  }
}

/** The path around all cells of a value: every edge between a cell that has it and one that has not. */
function border(at, value, columns, rows) {
  const path = [];
  for (let j = 0; j < rows; j++) {
    for (let i = 0; i < columns; i++) {
      if (at(i, j) !== value) continue;
      if (at(i - 1, j) !== value) path.push(`M${i} ${j}v1`);
      if (at(i + 1, j) !== value) path.push(`M${i + 1} ${j}v1`);
      if (at(i, j - 1) !== value) path.push(`M${i} ${j}h1`);
      if (at(i, j + 1) !== value) path.push(`M${i} ${j + 1}h1`);
    }
  }
  return path.join("");
}
