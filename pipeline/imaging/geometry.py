"""Computes the geometry of a stack of axial slices: order, regularity, affine. It reads no files.

Positions, orientations and pixel spacings are arrays of ImagePositionPatient, ImageOrientationPatient and PixelSpacing
in LPS mm, as in DICOM (PS3.3, C.7.6.2.1.1): x to the patient's left, y to the back, z to the head.
"""

import math

import numpy as np
from numpy.typing import NDArray

from models.refusal import Refusal
from pipeline.imaging import reasons

Floats = NDArray[np.float64]

MIN_SLICES = 20
MAX_OBLIQUE_DEGREES = 30.0
MAX_TILT_DEGREES = 1.0
_MAX_SIDE_STEP_MM = 0.5
_MIN_SPACING_MM, _MAX_SPACING_MM = 0.05, 10.0
_MAX_POSITION_MM = 1e5  # far beyond any scanner's table
_SAME_POSITION_MM = 0.01
_MOST_PLACES = 5  # named in a refusal
_UNEVEN_SHARE, _UNEVEN_MM = 0.05, 0.1 + 1e-6  # the larger one applies: positions may have only one decimal
_SAME_DIRECTION = 1e-3  # difference of unit vectors: 0.06 degrees
# Scanners and anonymisers round. Three decimals change the length of an axis by at most 0.0009, and the angle between
# two by at most 0.1 degrees (a dot product of 0.0018).
_MOST_OFF_LENGTH, _MOST_OFF_RIGHT_ANGLE = 0.01, 0.002


def unit_axes(orientation: Floats) -> tuple[Floats, Floats]:
    """Return the directions of a row and of a column as perpendicular unit vectors, from ImageOrientationPatient.

    DICOM requires both (PS3.3, C.7.6.2.1.1). Errors of rounded numbers are corrected. GDCM, with which ITK reads DICOM,
    corrects any length too (gdcm::ImageHelper), and accepts dot products below 0.001.

    Raises `Refusal`: E_GEOMETRY.
    """
    lengths = np.linalg.norm(orientation.reshape(2, 3), axis=1)
    if not (np.abs(lengths - 1) <= _MOST_OFF_LENGTH).all():  # NaN compares false
        raise Refusal(reasons.GEOMETRY)
    row, column = orientation[:3] / lengths[0], orientation[3:] / lengths[1]
    if abs(row @ column) > _MOST_OFF_RIGHT_ANGLE:
        raise Refusal(reasons.GEOMETRY)
    column = column - (row @ column) * row
    return row, column / np.linalg.norm(column)


def headward_normal(orientations: Floats) -> Floats:
    """Return the unit vector across the slices, towards the head, from all orientations, shape (slices, 6).

    Raises `Refusal`: E_GEOMETRY, E_MIXED_GEOMETRY, E_OBLIQUE.
    """
    if not np.isfinite(orientations).all():
        raise Refusal(reasons.GEOMETRY)
    row, column = unit_axes(orientations[0])
    if np.ptp(orientations, axis=0).max() > _SAME_DIRECTION:
        raise Refusal(reasons.MIXED_GEOMETRY)
    normal = np.cross(row, column)
    degrees = math.degrees(math.acos(min(1.0, abs(normal[2]))))
    if degrees > MAX_OBLIQUE_DEGREES:
        raise Refusal(reasons.OBLIQUE, degrees=round(degrees))
    return normal if normal[2] > 0 else -normal


def feet_to_head(positions_mm: Floats, normal: Floats) -> tuple[NDArray[np.intp], NDArray[np.bool_]]:
    """Return the order of the slices, and which of them (in that order) have the position of the slice before.

    Raises `Refusal`: E_GEOMETRY.
    """
    if not (np.abs(positions_mm) < _MAX_POSITION_MM).all():  # NaN compares false
        raise Refusal(reasons.GEOMETRY)
    height_mm = positions_mm @ normal
    order = np.argsort(height_mm, kind="stable")
    return order, np.diff(height_mm[order], prepend=-np.inf) < _SAME_POSITION_MM


def ras_affine(positions_mm: Floats, normal: Floats, orientation: Floats, pixel_spacings_mm: Floats) -> Floats:
    """Return the affine from (slice, row, column, 1) to RAS millimetres, for sorted, distinct positions.

    `pixel_spacings_mm`, shape (slices, 2): distance between rows, distance between columns.
    The first axis is not perpendicular to the others if the gantry was tilted; see `sideways_pixels`.

    Raises `Refusal`: E_TOO_FEW, E_SPACING, E_MIXED_GEOMETRY, E_SLICE_GAP, E_TILT, E_GEOMETRY.
    """
    if len(positions_mm) < 2:  # with two or more, gap and tilt are more informative than the number
        raise Refusal(reasons.TOO_FEW, slices=len(positions_mm), least=MIN_SLICES)
    steps_mm = np.diff(positions_mm, axis=0)
    upward_mm = steps_mm @ normal
    usual_mm = float(np.median(upward_mm))
    for spacing_mm in (*pixel_spacings_mm.ravel(), usual_mm):
        check_spacing(spacing_mm)
    if np.ptp(pixel_spacings_mm, axis=0).max() > 1e-3 * pixel_spacings_mm.max():
        raise Refusal(reasons.MIXED_GEOMETRY)
    _check_even(upward_mm, usual_mm)
    _check_sideways(steps_mm - np.outer(upward_mm, normal), usual_mm)
    if len(positions_mm) < MIN_SLICES:
        raise Refusal(reasons.TOO_FEW, slices=len(positions_mm), least=MIN_SLICES)

    lps = np.eye(4)
    lps[:3, 0] = steps_mm.mean(axis=0)
    row, column = unit_axes(orientation)
    lps[:3, 1] = column * pixel_spacings_mm[0, 0]  # from one row to the next
    lps[:3, 2] = row * pixel_spacings_mm[0, 1]
    lps[:3, 3] = positions_mm[0]
    return np.diag([-1.0, -1.0, 1.0, 1.0]) @ lps


def check_spacing(spacing_mm: float) -> None:
    """Refuse a spacing outside the limits. Raises `Refusal`: E_SPACING."""
    if not _MIN_SPACING_MM <= spacing_mm <= _MAX_SPACING_MM:  # NaN compares false
        raise Refusal(
            reasons.SPACING,
            spacing_mm=round(float(spacing_mm), 3),
            least_mm=_MIN_SPACING_MM,
            most_mm=_MAX_SPACING_MM,
        )


def tilt_degrees(affine: Floats) -> float:
    """Return the angle between the first axis of an affine and the perpendicular of the slices."""
    normal = np.cross(affine[:3, 1], affine[:3, 2])
    step = affine[:3, 0]
    share = float(abs(step @ normal) / (np.linalg.norm(step) * np.linalg.norm(normal)))
    return math.degrees(math.acos(min(1.0, share)))


def sideways_pixels(affine: Floats) -> Floats:
    """Return how far each slice lies beside the perpendicular through the one before: in rows and columns."""
    lengths = np.linalg.norm(affine[:3, 1:3], axis=0)  # both axes are perpendicular to each other
    return np.asarray(affine[:3, 0] @ affine[:3, 1:3] / lengths**2, np.float64)


def _check_even(upward_mm: Floats, usual_mm: float) -> None:
    """Refuse uneven distances; say how many slices are missing, and where."""
    uneven = np.abs(upward_mm - usual_mm) > max(_UNEVEN_SHARE * usual_mm, _UNEVEN_MM)
    if uneven.any():
        after = (np.flatnonzero(uneven) + 1).tolist()
        shown = ", ".join(map(str, after[:_MOST_PLACES])) + (", ..." if len(after) > _MOST_PLACES else "")
        raise Refusal(
            reasons.SLICE_GAP,
            gaps=int(uneven.sum()),
            usual_mm=round(usual_mm, 2),
            largest_mm=round(float(upward_mm.max()), 2),
            missing=int(np.maximum(0, np.rint(upward_mm[uneven] / usual_mm) - 1).sum()),
            after=shown,
        )


def _check_sideways(sideways_mm: Floats, usual_mm: float) -> None:
    """Refuse sideways shifts that differ between slices. A tilted gantry shifts all slices by the same distance."""
    usual_sideways_mm = np.median(sideways_mm, axis=0)
    jump_mm = float(np.linalg.norm(sideways_mm - usual_sideways_mm, axis=1).max())
    degrees = math.degrees(math.atan2(float(np.linalg.norm(usual_sideways_mm)), usual_mm))
    if jump_mm > _MAX_SIDE_STEP_MM or degrees > MAX_OBLIQUE_DEGREES:
        raise Refusal(reasons.TILT, jump_mm=round(jump_mm, 1), degrees=round(degrees, 1))
