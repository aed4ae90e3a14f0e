"""Turns one CT series into a volume in Hounsfield units, or refuses it; every correction is flagged."""

import numpy as np
from numpy.typing import NDArray

from models.refusal import Refusal
from pipeline.imaging import reasons
from pipeline.imaging.ct_slice import AIR_HU, BRIGHTEST_HU, Slice, decode_slice, inspect_slices
from pipeline.imaging.discovery import Series
from pipeline.imaging.gantry_tilt import straightened
from pipeline.imaging.geometry import MAX_TILT_DEGREES, feet_to_head, headward_normal, ras_affine, tilt_degrees
from pipeline.imaging.one_scan import check_positions, require_one_recording, require_one_scan
from pipeline.imaging.pydicom_silence import quiet_pydicom
from pipeline.imaging.seam import has_seam
from pipeline.imaging.volume import MAX_VOXELS, Volume, filled_slices, is_blank

LOWEST_HU, HIGHEST_HU = -2000, 10_000  # noise does not go lower; only metal on an extended HU scale is brighter
# Share of all voxels that metal above HIGHEST_HU may fill: some 40 mL of a whole chest, more than spinal rods do. The
# rest of such a scan must be tissue in HU, by its median: fat is near -100 HU, organs are between 20 and 80.
_MOST_METAL, _TISSUE_HU, _SLICES = 0.001, (-200, 200), 16
THICK_MM = 5.0
_NOT_AIR_HU = -500
_MIN_NOT_AIR = 0.01  # share of voxels; a chest fills about half of the image


@quiet_pydicom()
def read_series(series: Series) -> Volume:
    """Read a series of axial CT slices.

    Slice 0 of the volume is nearest to the feet, whatever the order of the files and the position of the patient.
    Rows and columns keep their stored order; the affine gives their directions. HU are clipped to [-1024, 3071].
    Padding around the scan becomes -1024.

    Slices of a tilted gantry are moved to their true places.

    Raises `Refusal` with a reason from `pipeline/imaging/reasons.py`. Flags: W_MODALITY_EMPTY, W_DUPLICATE_SLICE,
    W_LOSSY, W_DERIVED, W_IMAGE_TYPE, W_CONTRAST, W_THICK, W_POSITIONS, W_PADDING, W_SEAM, W_TILT.
    """
    slices = inspect_slices(series.files)
    require_one_scan(slices)
    flags = {flag for each in slices for flag in each.flags}
    shapes = {(each.form.rows, each.form.columns) for each in slices}
    if len(shapes) > 1:
        raise Refusal(reasons.MIXED_GEOMETRY)
    ((rows, columns),) = shapes
    if rows * columns * len(slices) > MAX_VOXELS:
        raise Refusal(reasons.DIMENSIONS, rows=rows, columns=columns, slices=len(slices))

    normal = headward_normal(np.array([each.orientation for each in slices]))
    order, is_copy = feet_to_head(np.array([each.position_mm for each in slices]), normal)
    slices = [slices[index] for index in order]
    if is_copy.any():
        _check_copies(slices, is_copy)
        slices = [each for each, copy in zip(slices, is_copy, strict=True) if not copy]
        flags.add(reasons.DUPLICATE_SLICE_FLAGGED.code)
    require_one_recording(slices)
    affine = ras_affine(
        np.array([each.position_mm for each in slices]),
        normal,
        np.array(slices[0].orientation),
        np.array([each.pixel_spacing_mm for each in slices]),
    )
    if np.nanmax([np.linalg.norm(affine[:3, 0]), *(each.thickness_mm for each in slices)]) > THICK_MM:
        flags.add(reasons.THICK.code)

    flags |= check_positions(slices, float(np.linalg.norm(affine[:3, 0])))

    hu = np.empty((len(slices), rows, columns), dtype=np.int16)
    for index, each in enumerate(slices):
        decode_slice(each, out=hu[index])
    return finish(hu, affine, flags)


def _check_copies(slices: list[Slice], is_copy: NDArray[np.bool_]) -> None:
    """Refuse slices at one position with different pixels; the same UID is not enough to make them copies."""
    for index in np.flatnonzero(is_copy):
        if not np.array_equal(decode_slice(slices[index - 1]), decode_slice(slices[index])):
            raise Refusal(reasons.DUPLICATE_SLICE, duplicates=int(is_copy.sum()), private=str(slices[index].path))


def finish(hu: NDArray[np.int16], affine: NDArray[np.float64], flags: set[str]) -> Volume:
    """Finish a volume, as the last step of every reader: turn padding into air, check and clip HU, undo a tilt.

    `hu` is changed in place. Raises `Refusal`: E_HU_RANGE, E_EMPTY_VOLUME, E_BLANK_SLICES, E_DIMENSIONS.
    Flags: W_PADDING, W_SEAM, W_TILT.
    """
    lowest, highest = _range(hu)
    if lowest < LOWEST_HU and _fill_undeclared_padding(hu, lowest):
        flags = {*flags, reasons.PADDING.code}
        lowest, highest = _range(hu)
    if lowest < LOWEST_HU or (highest > HIGHEST_HU and not _is_metal(hu)):
        raise Refusal(reasons.HU_RANGE, lowest_hu=lowest, highest_hu=highest)
    if lowest == highest or _is_all_air(hu):
        raise Refusal(reasons.EMPTY_VOLUME)
    first, end = filled_slices(hu)
    if blank := int(sum(is_blank(each) for each in hu[first:end])):
        raise Refusal(reasons.BLANK_SLICES, blank=blank)
    if has_seam(hu):
        flags = {*flags, reasons.SEAM.code}
    if not AIR_HU <= lowest <= highest <= BRIGHTEST_HU:
        np.clip(hu, AIR_HU, BRIGHTEST_HU, out=hu)
    volume = Volume(hu=hu, affine=affine, flags=tuple(sorted(flags)))
    return straightened(volume) if tilt_degrees(affine) > MAX_TILT_DEGREES else volume


def _range(hu: NDArray[np.int16]) -> tuple[int, int]:
    """Return the lowest and highest value; it works slice by slice, because a slice fits the processor's cache."""
    ends = np.array([(each.min(), each.max()) for each in hu])
    return int(ends[:, 0].min()), int(ends[:, 1].max())


def _is_metal(hu: NDArray[np.int16]) -> bool:
    """Whether what is brighter than HIGHEST_HU is metal in a scan in HU.

    Some scanners store metal with 20,000 HU and more, for example in steps of 10 HU. With a wrong rescale many voxels
    are that bright, or all tissue is too bright.
    """
    metal = sum(int(np.count_nonzero(each > HIGHEST_HU)) for each in hu)
    some = hu[:: max(1, len(hu) // _SLICES)]
    tissue = some[some > _NOT_AIR_HU]
    is_tissue = bool(tissue.size) and _TISSUE_HU[0] <= float(np.median(tissue)) <= _TISSUE_HU[1]
    return metal <= _MOST_METAL * hu.size and is_tissue


def _is_all_air(hu: NDArray[np.int16]) -> bool:
    not_air = 0
    for each in hu:  # usually the first slices are enough
        not_air += int(np.count_nonzero(each > _NOT_AIR_HU))
        if not_air >= _MIN_NOT_AIR * hu.size:
            return False
    return True


def _fill_undeclared_padding(hu: NDArray[np.int16], lowest: int) -> bool:
    """Turn padding that no header declares into air, and return whether there was any.

    Outside the circle of reconstruction, scanners write one value, e.g. -3024 or -2048 HU. Measured values below the
    range would vary; they are not changed.
    """
    below = hu < LOWEST_HU
    if not (hu[below] == lowest).all():
        return False
    hu[below] = AIR_HU
    return True
