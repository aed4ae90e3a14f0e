// Reading the service's NIfTI files of bytes, such as masks.

import { bytes } from "./api.js";

const AXES = [1, 2, 3];
const AFFINE_AT = 280; // bytes: three rows of four numbers

/** Reads a NIfTI-1 file: its sizes along columns, rows and slices, its voxels in that order, and its affine's rows. */
export async function readNifti(path) {
  const unpacked = new Response(new Blob([await bytes(path)]).stream().pipeThrough(new DecompressionStream("gzip")));
  const content = await unpacked.arrayBuffer();
  const header = new DataView(content);
  const size = AXES.map((axis) => header.getInt16(40 + 2 * axis, true));
  const affine = [0, 1, 2].map((row) => [0, 1, 2, 3].map((column) => header.getFloat32(AFFINE_AT + 16 * row + 4 * column, true)));
  const start = header.getFloat32(108, true);
  return { size, affine, voxels: new Uint8Array(content, start, size[0] * size[1] * size[2]) };
}
