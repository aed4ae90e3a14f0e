// Places in a scan: shares from 0 to 1 of its extent towards left (sagittal), back (coronal) and head (axial).

/** By plane: the planes whose slices follow along its columns and its rows; rows of the last two begin at the head. */
const ALONG = {
  axial: { x: "sagittal", y: "coronal", fromHead: false },
  coronal: { x: "sagittal", y: "axial", fromHead: true },
  sagittal: { x: "coronal", y: "axial", fromHead: true },
};

/** Where a place lies in a plane's picture, as shares of its width and height. */
export function inPicture(plane, place) {
  const { x, y, fromHead } = ALONG[plane];
  return { x: place[x], y: fromHead ? 1 - place[y] : place[y] };
}

/** The place at a point of a plane's picture; the plane's own slice is that of `place`. */
export function inScan(plane, point, place) {
  const { x, y, fromHead } = ALONG[plane];
  return { ...place, [x]: point.x, [y]: fromHead ? 1 - point.y : point.y };
}

/** The planes along columns and rows, and whether the rows begin at the head. */
export const along = (plane) => ALONG[plane];

/** The distance of two places in mm; `planes`: the service's description of each plane. */
export function distanceMm(planes, from, to) {
  const steps = Object.entries(planes).map(([plane, { count, spacing_mm }]) => (to[plane] - from[plane]) * count * spacing_mm);
  return Math.hypot(...steps);
}

/** The slice of a plane at a share of the scan. */
export const sliceAt = (share, count) => Math.max(0, Math.min(count - 1, Math.floor(share * count)));
