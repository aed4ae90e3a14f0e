"""Tells the air in lungs from that outside the body, and refuses lungs that a small field of view cuts.

Images end at their four sides, or before: scanners fill what lies outside their round field of view with one value.
"""

import math

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from models.refusal import Refusal
from pipeline.imaging.ct_slice import AIR_HU
from pipeline.imaging.volume import Volume, filled_slices
from pipeline.preprocessing.lungs import AIR_BELOW_HU, at_sides, grown
from pipeline.preprocessing.reasons import LUNGS_CUT_REFUSED, NO_LUNGS

PADDING_BELOW_HU = AIR_HU + 0.5  # on the working grid, where each voxel is a mean
# Area at an end or a side of the scan, as a share of the lungs' largest section in that direction. An ellipsoid cut at
# this limit loses a tenth of its length and 2 % of its volume.
MOST_CUT = 1 / 3
MOSTLY = 0.5  # share of a piece of air
LEAST_AERATED = 0.2  # share of the lungs; in severe ARDS a third still holds air
AROUND_MM = (5.0, 12.0)  # distance from the lungs, without the voxels that they fill in part
# Less dense than fat, as a share of what is around the lungs. In 32 patients it was at most 9 %.
THIN_BELOW_HU, MOST_THIN = -200.0, 0.35
IN_PLANE = (1, 2)  # the axes of rows and columns


def padding(hu: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Return what lies outside the field of view: voxels of AIR_HU, up to the sides of the images.

    `hu`: shape (slices, rows, columns), on the working grid.
    """
    labels, count = ndimage.label(hu < PADDING_BELOW_HU)
    is_padding = np.zeros(count + 1, bool)
    is_padding[at_sides(labels)] = True
    is_padding[0] = False
    return is_padding[labels]


def edges(padded: NDArray[np.bool_]) -> list[tuple[int, NDArray[np.bool_]]]:
    """Return the voxels at which the images end, at each of their four sides, with the axis of the side."""
    found = []
    for axis in IN_PLANE:
        for towards in (1, -1):
            edge = np.zeros_like(padded)
            at, beyond = (np.moveaxis(each, axis, 0)[::towards] for each in (edge, padded))
            at[0] = True
            at[1:] |= beyond[:-1]
            found.append((axis, edge & ~padded))
    return found


def outside_pieces(hu: NDArray[np.float32], lungs: NDArray[np.bool_]) -> tuple[NDArray[np.int32], NDArray[np.bool_]]:
    """Tell the air outside the body from that in `lungs`, where the images may cut through them.

    Returns
    -------
    labels : NDArray
        Shape as `hu`: the piece of air that each voxel is part of, and 0 where there is none.
    is_outside : NDArray
        For each label: whether the piece reaches an edge of the images, and no more than MOSTLY of it is `lungs`.
        Padding is a piece of its own, and outside.
    """
    padded = padding(hu)
    labels, count = ndimage.label((hu < AIR_BELOW_HU) & ~padded)
    is_outside = np.zeros(count + 2, bool)
    for _, edge in edges(padded):
        is_outside[labels[edge]] = True
    sizes, in_lungs = (np.bincount(each, minlength=count + 2) for each in (labels.ravel(), labels[lungs]))
    is_outside &= in_lungs <= MOSTLY * sizes
    is_outside[0] = False
    labels[padded] = count + 1
    is_outside[count + 1] = True
    return labels, is_outside


def cut_slices(volume: Volume, rows: int) -> tuple[int, int]:
    """Return the slices of a working grid of `rows` slices at which the body ends, the lower and the upper one.

    Slices that show nothing may follow a cut: they are no part of the field of view. `volume`: upright.
    """
    first, end = filled_slices(volume.hu)
    scale = rows / len(volume.hu)
    low = min(math.ceil(first * scale), rows - 1)
    return low, max(low, math.floor(end * scale) - 1)


def cut_share(hu: NDArray[np.float32], lungs: NDArray[np.bool_]) -> float:
    """Return the lungs' area at a side of the images as a share of their largest section, of the side with most."""
    shares = [0.0]
    for axis, edge in edges(padding(hu)) if lungs.any() else ():
        largest = lungs.sum(axis=tuple({0, *IN_PLANE} - {axis})).max()
        shares.append(float(np.count_nonzero(lungs & edge) / largest))
    return max(shares)


def end_shares(lungs: NDArray[np.bool_], ends: tuple[int, int]) -> tuple[float, float]:
    """Return the lungs' area at the lower and the upper end of the scan, as shares of their largest section.

    `ends`: the slices at which the body ends, see `cut_slices`.
    """
    section = lungs.sum(axis=(1, 2)) / max(1, lungs.sum(axis=(1, 2)).max())
    low, high = ends
    return float(section[: low + 1].max()), float(section[high:].max())


def require_uncut(hu: NDArray[np.float32], lungs: NDArray[np.bool_]) -> None:
    """Refuse lungs of which a small field of view leaves out more than a little.

    Raises Refusal E_LUNGS_CUT.
    """
    if (share := cut_share(hu, lungs)) > MOST_CUT:
        raise Refusal(LUNGS_CUT_REFUSED, percent=round(100 * share))


def require_aerated(hu: NDArray[np.float32], lungs: NDArray[np.bool_]) -> None:
    """Refuse a mask with hardly any air of its own: noise, tissue, air outside the patient, an MR that calls itself CT.

    Raises Refusal E_NO_LUNGS. The method by threshold finds nothing else than enclosed air.
    """
    labels, is_outside = outside_pieces(hu, lungs)
    is_own = ~is_outside
    is_own[0] = False
    if np.count_nonzero(is_own[labels[lungs]]) < LEAST_AERATED * np.count_nonzero(lungs):
        raise Refusal(NO_LUNGS)


def require_in_tissue(hu: NDArray[np.float32], lungs: NDArray[np.bool_], spacing_mm: float) -> None:
    """Refuse lungs around which there is no chest: the segmenter takes a part of noise for lung.

    Raises Refusal E_NO_LUNGS.
    """
    inner, outer = (grown(lungs, (spacing_mm,) * 3, reach_mm) for reach_mm in AROUND_MM)
    around = hu[outer & ~inner]
    if np.count_nonzero(around < THIN_BELOW_HU) > MOST_THIN * around.size:
        raise Refusal(NO_LUNGS)
