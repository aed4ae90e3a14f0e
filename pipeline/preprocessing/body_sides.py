"""Tells the right from the left side of a chest, also beside arms, on a table, off the centre, or with one lung."""

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from pipeline.imaging.lung_mask import LEFT, RIGHT
from pipeline.preprocessing.field_of_view import MOSTLY, outside_pieces
from pipeline.preprocessing.lungs import SMALLER_LUNG, bounding_box, grown

ROOM_AIR_BELOW_HU = -960.0  # the median of lungs is above, see `plausibility.LUNG_HU`
TOUCHING_MM = 8.0  # lungs that touch, or a trachea and its bronchi join, are joined by less than twice this width
ONE_SIDE = 0.9  # share of a piece of lung


def divide_lungs(lungs: NDArray[np.bool_], hu: NDArray[np.float32], spacing_mm: float) -> NDArray[np.uint8]:
    """Return the lungs of a mask that does not tell the sides apart: uint8, RIGHT, LEFT, and 0 outside.

    Two large pieces on different sides of the trunk are the two lungs, and each voxel belongs to the nearest of them.
    Otherwise the middle of the trunk divides the lungs; a piece that lies nearly all on one side is one lung.
    `lungs`, `hu`: shape (slices, rows, columns), columns towards the patient's left.
    """
    sides = np.zeros(lungs.shape, np.uint8)
    if not lungs.any():
        return sides
    box = bounding_box(lungs, 1)  # the margin keeps the faces of the box outside the lungs
    inside, middle = lungs[box], middle_column(hu, lungs) - box[2].start
    found = _by_pieces(inside, middle, spacing_mm)
    sides[box] = _by_middle(inside, middle) if found is None else found
    return sides


def middle_column(hu: NDArray[np.float32], lungs: NDArray[np.bool_]) -> float:
    """Return the column in the middle of the trunk, at the height of the lungs.

    In each row that crosses a lung, the trunk reaches from the lung to the air on both sides. The median of all rows
    does not move if an arm or the table touches the trunk in some of them. `hu`, `lungs`: as in `divide_lungs`.
    """
    crossed = lungs.any(axis=2)
    body, lungs = (lungs | ~_air_outside(hu, lungs))[crossed], lungs[crossed]
    columns = np.arange(lungs.shape[1])
    first = lungs.argmax(axis=1)[:, None]
    last = len(columns) - 1 - lungs[:, ::-1].argmax(axis=1)[:, None]
    right = np.where(~body & (columns < first), columns, -1).max(axis=1) + 1
    left = np.where(~body & (columns > last), columns, len(columns)).min(axis=1) - 1
    return float(np.median(right + left)) / 2


def mean_column(piece: NDArray[np.bool_]) -> float:
    """Return the mean column of the voxels of a piece."""
    columns = np.count_nonzero(piece, axis=(0, 1))
    return float(np.average(np.arange(len(columns)), weights=columns))


def _air_outside(hu: NDArray[np.float32], lungs: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Return the air outside the body, also that which arm, trunk and table enclose in each slice.

    An end of the scan cuts such air, and it is less dense than a lung that the mask lacks.
    """
    pieces, is_outside = outside_pieces(hu, lungs)
    for label in np.unique(pieces[[0, -1]]):
        piece = pieces == label
        if np.median(hu[piece]) < ROOM_AIR_BELOW_HU:
            is_outside[label] |= np.count_nonzero(piece & lungs) <= MOSTLY * np.count_nonzero(piece)
    is_outside[0] = False  # what is no air
    return np.asarray(is_outside[pieces])


def _by_pieces(lungs: NDArray[np.bool_], middle: float, spacing_mm: float) -> NDArray[np.uint8] | None:
    """Divide lungs that have a large piece on each side of the middle; None if they have not."""
    pieces, _ = ndimage.label(~grown(~lungs, (spacing_mm,) * 3, TOUCHING_MM))
    sizes = np.bincount(pieces.ravel())
    sizes[0] = 0
    large = np.flatnonzero(sizes >= max(1, SMALLER_LUNG * sizes.max()))
    is_left = {int(label): mean_column(pieces == label) > middle for label in large}
    if len(set(is_left.values())) < 2:
        return None
    cores = np.zeros(lungs.shape, np.uint8)
    for label, left in is_left.items():
        cores[pieces == label] = LEFT if left else RIGHT
    nearest = ndimage.distance_transform_edt(cores == 0, return_distances=False, return_indices=True)
    return np.asarray(cores[tuple(nearest)] * lungs)


def _by_middle(lungs: NDArray[np.bool_], middle: float) -> NDArray[np.uint8]:
    """Divide lungs at a column, except for pieces that lie nearly all on one side of it."""
    pieces, _ = ndimage.label(lungs)
    is_left = np.broadcast_to(np.arange(lungs.shape[2]) > middle, lungs.shape)
    share = np.bincount(pieces.ravel(), is_left.ravel()) / np.bincount(pieces.ravel())
    of_piece = share[pieces]
    is_left = np.where(of_piece >= ONE_SIDE, True, np.where(of_piece <= 1 - ONE_SIDE, False, is_left))
    return np.asarray(np.where(is_left, np.uint8(LEFT), np.uint8(RIGHT)) * lungs)
