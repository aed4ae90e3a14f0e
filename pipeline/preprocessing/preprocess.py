"""Turns a volume in HU into the tensor that the network reads; training, evaluation and scoring share one function."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from models.refusal import Refusal
from pipeline.imaging.lung_mask import LungMask
from pipeline.imaging.reasons import POSITIONS_FLAGGED
from pipeline.imaging.volume import Volume, voxel_ml
from pipeline.preprocessing.air import air_around, require_lung
from pipeline.preprocessing.area_resample import area_means
from pipeline.preprocessing.external_lungs import sides_on_grid
from pipeline.preprocessing.field_of_view import require_aerated, require_in_tissue, require_uncut
from pipeline.preprocessing.lung_regions import LungRegions, find_regions
from pipeline.preprocessing.lungs import bounding_box, crop_box, find_lungs, require_lungs, require_proportions
from pipeline.preprocessing.preprocess_settings import EXTERNAL, THRESHOLD, Preprocessing
from pipeline.preprocessing.reasons import FIELD_OF_VIEW, MASK_MISSING, NO_AIR

AXES = ("S", "P", "L")  # slices towards the head, rows towards the back, columns towards the patient's left
DARKEST_HU = -300.0  # every chest contains air
LEAST_WIDTH_MM = 150.0  # the lungs of a small adult are wider


@dataclass(frozen=True)
class Prepared:
    """A preprocessed scan: the network's input, and values found during preprocessing.

    `tensor`: float16, shape (2, slices, rows, columns): lung window scaled to -1..1, and the lung mask.
    `image_hu`, `lungs`: the scan and its mask on the working grid, axes as in AXES, for pictures.
    `affine`: float64, shape (4, 4), maps (slice, row, column, 1) of the working grid to millimetres in RAS.
    `box`: the part of the working grid that the tensor shows, resampled to its shape. `found`: what the segmenter
    found, if `lungs` come from it.
    """

    tensor: NDArray[np.float16]
    image_hu: NDArray[np.float32]
    lungs: NDArray[np.bool_]
    spacing_mm: float
    lungs_ml: float
    shift_hu: float
    affine: NDArray[np.float64]
    box: tuple[slice, ...]
    found: LungRegions | None = None

    @property
    def tensor_affine(self) -> NDArray[np.float64]:
        """Affine from (slice, row, column, 1) of the tensor to millimetres in RAS."""
        move = np.eye(4)
        move[:3, 3] = [side.start for side in self.box]
        extent = [side.stop - side.start for side in self.box]
        return resampled_affine(self.affine @ move, extent, self.tensor.shape[1:])

    @property
    def voxel_ml(self) -> float:
        """Volume of a voxel of the working grid: its steps differ a little from `spacing_mm`, to fill the scan."""
        return voxel_ml(self.affine)

    @property
    def scan_digest(self) -> str:
        """SHA-256 of `image_hu`; copies of a scan under two names have the same digest with the same settings.

        Each voxel of the scan contributes to an average, so a difference of one HU in one voxel changes the digest.
        Hashing the scan itself, with a hundred times as many voxels, would take nearly as long as reading it.
        """
        return hashlib.sha256(np.ascontiguousarray(self.image_hu).data).hexdigest()

    @property
    def digest(self) -> str:
        """SHA-256 of the tensor; two sites that preprocess the same scan in the same way get the same digest."""
        return hashlib.sha256(np.ascontiguousarray(self.tensor).tobytes()).hexdigest()


def orient(volume: Volume) -> Volume:
    """Return the same scan with its axes in the order and direction of AXES, without interpolation."""
    if _is_upright(volume.affine):
        return replace(volume, hu=np.ascontiguousarray(volume.hu))
    # Imported here because nibabel is large: it takes a fiftieth of the time of a score, and few scans need it.
    from nibabel.orientations import apply_orientation, axcodes2ornt, inv_ornt_aff, io_orientation, ornt_transform

    move = ornt_transform(io_orientation(volume.affine), axcodes2ornt(AXES))
    hu = apply_orientation(volume.hu, move)
    affine = volume.affine @ inv_ornt_aff(move, volume.hu.shape)
    return replace(volume, hu=np.ascontiguousarray(hu), affine=affine)


def _is_upright(affine: NDArray[np.float64]) -> bool:
    """Whether each axis points in the direction of AXES, within 25 degrees."""
    towards = np.array([[0, 0, -1], [0, -1, 0], [1, 0, 0]])  # the columns: S, P, L, in RAS+
    cosines = (affine[:3, :3] * towards).sum(axis=0) / np.linalg.norm(affine[:3, :3], axis=0)
    return bool((cosines > 0.9).all())


def resample(hu: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
    """Resample (slices, rows, columns) to `shape`: area average to a coarser grid, trilinear to a finer one."""
    x = hu[None, None]
    coarser = tuple(min(a, b) for a, b in zip(hu.shape, shape, strict=True))
    if coarser != tuple(hu.shape):
        x = F.interpolate(x, size=coarser, mode="area")
    if coarser != tuple(shape):
        x = F.interpolate(x, size=shape, mode="trilinear", align_corners=False)
    return x[0, 0]


def resampled_affine(affine: NDArray[np.float64], old: Sequence[int], new: Sequence[int]) -> NDArray[np.float64]:
    """Return the affine after `resample` from shape `old` to `new`; the outer faces of the grid do not move."""
    scale = np.divide(old, new)
    to_old = np.diag([*scale, 1.0])
    to_old[:3, 3] = (scale - 1) / 2  # of the centre of the first voxel
    return affine @ to_old


def prepare(volume: Volume, settings: Preprocessing, mask: LungMask | None = None) -> Prepared:
    """Orient, resample, find the lungs, crop to them, centre the lungs' HU, window.

    HU are shifted so that the aerated part of this scan's lungs (10th percentile inside the mask) lies at
    `aerated_lung_hu`, by at most `largest_shift_hu`. This removes differences of calibration, kernel and inspiration
    between scanners, at the site and from this scan alone.

    Parameters
    ----------
    volume : Volume
        A chest CT in HU, in any orientation.
    settings : Preprocessing
        The settings, those of the release where one is used.
    mask : LungMask or None
        The external mask, which only method 3 uses.

    Returns
    -------
    Prepared
        `tensor`, float16, shape (2, slices, rows, columns): lung window scaled to -1 to 1, and lung mask. Beside it
        the scan on the working grid, its affine, and what was measured.

    Raises
    ------
    Refusal
        E_FIELD_OF_VIEW, E_NO_AIR, E_NO_LUNGS, E_LUNGS_CUT, E_NOT_A_WHOLE_CHEST, E_NOT_LUNG or E_PROPORTIONS for what is
        not a whole chest.
        With method 3 also E_MASK_MISSING, E_MASK_GRID and E_MASK_SIDES.
    """
    upright = orient(volume)
    width_mm = max(upright.extent_mm[1:])
    if width_mm < LEAST_WIDTH_MM:
        raise Refusal(FIELD_OF_VIEW, width_mm=round(width_mm))
    step = settings.working_spacing_mm
    size = tuple(max(1, round(extent / step)) for extent in upright.extent_mm)
    image = resample(area_means(upright.hu, size), size)
    hu = image.numpy()
    if hu.min() > DARKEST_HU:
        raise Refusal(NO_AIR)
    affine = resampled_affine(upright.affine, upright.hu.shape, size)
    lungs, found = _lungs(hu, affine, settings, mask)
    require_lung(hu, lungs, air_around(upright.hu, lungs))
    require_proportions(lungs, step, is_doubtful=POSITIONS_FLAGGED.code in volume.flags)
    shift = float(settings.aerated_lung_hu - np.percentile(hu[lungs], 10))
    shift = float(np.clip(shift, -settings.largest_shift_hu, settings.largest_shift_hu))
    margin = round(settings.margin_mm / step)
    box = bounding_box(lungs, margin) if settings.method == THRESHOLD else crop_box(lungs, margin)
    low, high = settings.window_hu
    window = ((image[box] + shift).clamp(low, high) - low) / (high - low) * 2 - 1
    inside = torch.from_numpy(lungs[box].astype(np.float32))
    tensor = torch.stack([resample(window, settings.shape), resample(inside, settings.shape)])
    return Prepared(
        tensor=tensor.numpy().astype(np.float16),
        image_hu=hu,
        lungs=lungs,
        spacing_mm=step,
        lungs_ml=float(lungs.sum() * voxel_ml(affine)),
        shift_hu=shift,
        affine=affine,
        box=box,
        found=found,
    )


def _lungs(
    hu: NDArray[np.float32], affine: NDArray[np.float64], settings: Preprocessing, mask: LungMask | None
) -> tuple[NDArray[np.bool_], LungRegions | None]:
    """Find the lungs with the method of the settings; also return what the segmenter found, if it was used."""
    step = settings.working_spacing_mm
    if settings.method == EXTERNAL:
        if mask is None:
            raise Refusal(MASK_MISSING)
        return sides_on_grid(mask, hu, affine, step) > 0, None
    if settings.method == THRESHOLD:
        return find_lungs(hu, (step, step, step)), None
    found = find_regions(hu, step)
    lungs = found.lungs
    require_aerated(hu, lungs)
    require_uncut(hu, lungs)
    require_in_tissue(hu, lungs, step)
    require_lungs(lungs, (step, step, step))
    return lungs, found


def regions_of(prepared: Prepared) -> LungRegions:
    """Return what the segmenter finds in a scan on its working grid, without searching twice."""
    return prepared.found or find_regions(prepared.image_hu, prepared.spacing_mm)


def mask_of(prepared: Prepared, mask: LungMask | None) -> NDArray[np.uint8] | None:
    """Return an external mask on the working grid of a scan, with any method; None without a mask.

    Raises Refusal as `sides_on_grid`.
    """
    if mask is None:
        return None
    return sides_on_grid(mask, prepared.image_hu, prepared.affine, prepared.spacing_mm)
