"""Finds the lungs in a chest CT by threshold and connected components, and refuses scans without a whole chest.

The method is simple on purpose: it needs no weights, runs in tens of milliseconds, and a radiologist can follow it.
Closing recovers only part of a dense consolidation that touches the chest wall. Any other function that maps HU to a
mask can replace this one.
"""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage

from models.refusal import Refusal
from pipeline.preprocessing.reasons import NO_LUNGS, NOT_A_WHOLE_CHEST, PROPORTIONS

# Between aerated lung and soft tissue; Hu et al., IEEE TMI 2001; 20:490-498, find a threshold near this value.
AIR_BELOW_HU = -500
TISSUE_ABOVE_HU = -500.0
SMALLEST_LUNG_ML = 250
SMALLER_LUNG = 0.2  # least share of the larger lung, or of both if they touch; a smaller region is stomach or colon
LUNGS_ML = (900, 10_000)  # both lungs of an adult, from full expiration to emphysema
SHORTEST_LUNGS_MM = 120
TALLEST_LUNGS_MM = 450  # lungs with emphysema of tall people reach 350 mm
# Height by width. Whole phantoms have 0.64 to 1.13 and a real thorax 1.1; with halved distances it has 0.56.
LEAST_HEIGHT = 0.6
LEAST_PLANE = 0.01  # share of the lungs' largest plane, from which on a plane belongs to the crop
CLOSING_MM = 14
WIDEST_AIRWAY_MM2 = 700  # trachea at most 25 x 27 mm, 530 mm2; Breatnach et al., AJR 1984; 142:903-906


def find_lungs(hu: NDArray[np.float32], spacing_mm: tuple[float, float, float]) -> NDArray[np.bool_]:
    """Return the mask of both lungs, with vessels and most lesions.

    `hu`: shape (slices, rows, columns), from the feet to the head, with voxels of a few millimetres.

    Raises Refusal E_NO_LUNGS if no lung is found, and E_NOT_A_WHOLE_CHEST if the lungs found are too small, too short
    or too large for a whole chest.
    """
    voxel_ml = float(np.prod(spacing_mm)) / 1000
    labels, count = ndimage.label(hu < AIR_BELOW_HU)
    if count == 0:
        raise Refusal(NO_LUNGS)
    # Air that touches the sides of the image is outside the patient. Lungs may touch the first or last slice.
    outside = at_sides(labels)
    volume_ml = np.bincount(labels.ravel()) * voxel_ml
    volume_ml[0] = 0
    volume_ml[outside] = 0
    least_ml = max(SMALLEST_LUNG_ML, SMALLER_LUNG * volume_ml.max())
    lungs = [i for i in np.argsort(volume_ml)[::-1][:2] if volume_ml[i] >= least_ml]
    if not lungs:
        raise Refusal(NO_LUNGS)
    mask = _close(_without_neck(np.isin(labels, lungs), spacing_mm), spacing_mm)
    require_lungs(mask, spacing_mm)
    return mask


def largest_piece(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Return the largest connected piece of a mask."""
    pieces, count = ndimage.label(mask)
    if count < 2:
        return mask
    sizes = torch.bincount(torch.from_numpy(pieces).ravel()).numpy()  # numpy's takes twice as long
    sizes[0] = 0
    return np.asarray(pieces == sizes.argmax())


def at_sides(labels: NDArray[np.int32]) -> NDArray[np.int32]:
    """Return the labels that touch a side of the image. The first and the last slice do not count as sides."""
    sides = (labels[:, 0], labels[:, -1], labels[:, :, 0], labels[:, :, -1])
    return np.unique(np.concatenate([side.ravel() for side in sides]))


def _without_neck(mask: NDArray[np.bool_], spacing_mm: tuple[float, float, float]) -> NDArray[np.bool_]:
    """Remove the trachea above the lungs from the mask; it is connected to them and would extend the crop."""
    area_mm2 = mask.sum(axis=(1, 2)) * spacing_mm[1] * spacing_mm[2]
    wide = np.flatnonzero(area_mm2 > WIDEST_AIRWAY_MM2)
    if not wide.size:
        raise Refusal(NO_LUNGS)
    below = mask.copy()
    below[wide[-1] + 1 :] = False
    return below


def _close(mask: NDArray[np.bool_], spacing_mm: tuple[float, float, float]) -> NDArray[np.bool_]:
    """Close the mask with a ball of CLOSING_MM, by distances (exact for unequal spacing), then fill its holes.

    Holes are filled in sagittal planes, where a lung encloses its vessels and lesions. In axial planes two lungs that
    touch would enclose the mediastinum.
    """
    margin = [int(np.ceil(CLOSING_MM / s)) + 1 for s in spacing_mm]
    box = bounding_box(mask, 0)  # a closing stays inside the convex hull, and therefore inside this box
    padded = np.pad(mask[box], [(m, m) for m in margin])
    closed = ~grown(~grown(padded, spacing_mm, CLOSING_MM), spacing_mm, CLOSING_MM)
    inner = tuple(slice(m, -m) for m in margin)
    filled = closed[inner] | mask[box]
    planes = [ndimage.binary_fill_holes(filled[:, :, column]) for column in range(filled.shape[2])]
    whole = np.zeros_like(mask)
    whole[box] = np.stack(planes, axis=2)
    return whole


def grown(mask: NDArray[np.bool_], spacing_mm: Sequence[float], reach_mm: float) -> NDArray[np.bool_]:
    """Return the mask with all voxels that are within `reach_mm` of it.

    Squared distances are added axis by axis (Felzenszwalb & Huttenlocher, Theory of Computing 2012; 8:415-428). The
    search stops at `reach_mm`, and so takes a seventh of the time of scipy's distance transform.
    """
    squared = np.where(mask, np.float32(0), np.float32(np.inf))
    for axis, step_mm in enumerate(spacing_mm):
        nearest = squared.copy()
        near, far = np.moveaxis(nearest, axis, 0), np.moveaxis(squared, axis, 0)
        for voxels in range(1, int(reach_mm / step_mm) + 1):
            more = np.float32((voxels * step_mm) ** 2)
            np.minimum(near[voxels:], far[:-voxels] + more, out=near[voxels:])
            np.minimum(near[:-voxels], far[voxels:] + more, out=near[:-voxels])
        squared = nearest
    return squared <= reach_mm**2


def require_lungs(mask: NDArray[np.bool_], spacing_mm: tuple[float, float, float]) -> None:
    """Refuse a mask that is not the lungs of a whole chest.

    Raises Refusal E_NO_LUNGS if it is empty, and E_NOT_A_WHOLE_CHEST if it is too small, too short or too large.
    """
    lungs_ml = float(mask.sum() * np.prod(spacing_mm)) / 1000
    if lungs_ml < SMALLEST_LUNG_ML:
        raise Refusal(NO_LUNGS)
    length_mm = float(np.any(mask, axis=(1, 2)).sum() * spacing_mm[0])
    if not LUNGS_ML[0] <= lungs_ml <= LUNGS_ML[1] or length_mm < SHORTEST_LUNGS_MM:
        raise Refusal(NOT_A_WHOLE_CHEST, lungs_ml=round(lungs_ml), length_mm=round(length_mm))


def lungs_size_mm(mask: NDArray[np.bool_], spacing_mm: float) -> tuple[float, float]:
    """Return height and width of the lungs on a grid with axes as in `preprocess.AXES`."""
    height, _, width = ((side.stop - side.start) * spacing_mm for side in bounding_box(mask, 0))
    return height, width


def are_flat(height_mm: float, width_mm: float) -> bool:
    """Whether the lungs are lower than lungs are, as if the distances between slices were halved."""
    return height_mm < LEAST_HEIGHT * width_mm


def require_proportions(mask: NDArray[np.bool_], spacing_mm: float, *, is_doubtful: bool) -> None:
    """Refuse lungs that are too tall, and flat ones if other signs make the positions doubtful.

    Raises Refusal E_PROPORTIONS.
    """
    height_mm, width_mm = lungs_size_mm(mask, spacing_mm)
    if height_mm > TALLEST_LUNGS_MM or (is_doubtful and are_flat(height_mm, width_mm)):
        raise Refusal(PROPORTIONS, height_mm=round(height_mm), width_mm=round(width_mm))


def crop_box(mask: NDArray[np.bool_], margin: int) -> tuple[slice, ...]:
    """Return the box around the mask, enlarged by `margin` voxels, without planes that hold hardly any of it.

    A few voxels more or less at the edge of a lung then move the box less often.
    """
    thick = mask
    for axis in range(mask.ndim):
        area = mask.sum(axis=tuple(a for a in range(mask.ndim) if a != axis), keepdims=True)
        thick = thick & (area >= LEAST_PLANE * area.max())
    return bounding_box(thick, margin)


def bounding_box(mask: NDArray[np.bool_], margin: int) -> tuple[slice, ...]:
    """Return the smallest box around the mask, enlarged by `margin` voxels within the image."""
    slices = []
    for axis in range(mask.ndim):
        hit = np.flatnonzero(mask.any(axis=tuple(a for a in range(mask.ndim) if a != axis)))
        slices.append(slice(max(0, int(hit[0]) - margin), min(mask.shape[axis], int(hit[-1]) + 1 + margin)))
    return tuple(slices)
