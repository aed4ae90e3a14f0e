"""A random body for a synthetic patient, on the grid of a hospital's scanner, with its true label maps.

The body of `phantom.body` is drawn on a 4 mm grid: breasts by sex, emphysema and calcified arteries more likely with
age, pneumonia by the patient's pattern (`body.planted`). What else changes a lung is independent of the outcome:
emphysema, scars, nodules, dense lung at the back, air trapping and effusion. Three links are medical: women's chests
are smaller, age makes emphysema and calcification more likely, and effusion is common beside bacterial pneumonia and
rare in Covid-19 (Salehi et al., AJR 2020; 215:87-93). Effusion and large nodules are dense, but no part of the load.

The body is then sampled on the scanner's grid with cubic B-splines. They blur like a scanner with a standard deviation
of `measured_noise.BODY_BLUR_MM` and leave no stairs; trilinear interpolation would blur some slices more than others.
"""

from dataclasses import dataclass, replace

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from scipy import ndimage

from models.lung_segmenter import Region
from pipeline.phantom.anatomy import AERATED_LUNG_HU, Grid
from pipeline.phantom.body.abdomen import add_abdomen
from pipeline.phantom.body.chest import Chest, make_chest
from pipeline.phantom.body.disease import Lung, add_unrelated, healthy
from pipeline.phantom.body.frame import SIDES, Field, Frame, Mask, cubic_b_spline, draw_frame
from pipeline.phantom.body.person import Person
from pipeline.phantom.body.planted import plant
from pipeline.phantom.body.sample import STEP_MM, devices, lungs_into
from pipeline.phantom.body.trunk import Tissues, Trunk, make_trunk
from pipeline.phantom.lesions import Lesions
from pipeline.phantom.patients import Patient
from pipeline.preprocessing.lungs import largest_piece
from pipeline.preprocessing.measures import is_turned
from pipeline.preprocessing.measuring import body_pose
from pipeline.preprocessing.preprocess import Prepared

HEIGHT_MM = 344.0  # of the drawn body; a scanner's range is placed within it
# A whole chest in one scan. A body that exceeds these limits is drawn again, whatever its disease.
MARGIN_MM = 12.0  # between lungs and the ends of the scan
LUNGS_ML = (1800.0, 8500.0)
LEAST_SMALLER_LUNG = 0.33  # share in the volume of both lungs
LEAST_TRACHEA_MM2, LEAST_HEART_LEFT = 100.0, 0.08  # see `measures.Measures`; noise and blur take some of both
# The 15th percentile of healthy lung; in adults who breathe in deeply it is about -950 to -880 HU.
INFLATED_HU = -860.0
MOST_DRAWS = 50
WALL_MM = 15.0  # diaphragm and wall of the stomach or bowel


@dataclass(frozen=True)
class RandomBody:
    """A body on a scanner's grid, slice 0 lowest, rows to the back, columns to the patient's left.

    `hu`: without noise. `regions`: uint8, `Region.RIGHT_LUNG`, `Region.LEFT_LUNG` or background. `tissues`: uint8,
    values of `Tissue`, which hold inside the lungs. `ground_glass`, `consolidation`: the planted share of each voxel, 0
    to 1. `planted`: their shares of the lungs, on the grid on which the body was drawn.
    """

    hu: Field
    regions: NDArray[np.uint8]
    tissues: NDArray[np.uint8]
    ground_glass: Field
    consolidation: Field
    planted: Lesions


@dataclass(frozen=True)
class _Whole:
    """A body before disease: coordinates, wall, contents of the chest, and the middle of the lungs in voxels."""

    frame: Frame
    tissues: Tissues
    trunk: Trunk
    chest: Chest
    middle: float


def draw_body(patient: Patient, grid: Grid, rng: Generator, *, has_contrast: bool, density: float = 1.0) -> RandomBody:
    """Draw the body of a patient; the same generator state gives the same body.

    `density`: which share of its usual density the pneumonia adds to the lungs; it does not change the load.
    """
    whole = _whole_chest(patient, grid, rng, has_contrast=has_contrast)
    frame, trunk, chest, tissues = whole.frame, whole.trunk, whole.chest, whole.tissues
    lung = _after_a_breath(frame, chest, rng)
    emphysema = float(np.clip(0.02 + 0.008 * (patient.age_years - 35), 0.02, 0.45))
    add_unrelated(lung, frame, rng, emphysema=emphysema, effusion=0.25 if patient.pattern == "other" else 0.06)
    glass, solid = _pneumonia(lung, frame, patient, rng, density)
    hu, inner = lungs_into(trunk.hu, lung, chest, tissues, frame, rng)
    devices(frame, hu, trunk.body, lung.both, rng)
    at = _positions(frame, grid, whole.middle, rng)
    lungs = {side: sampled(lung.lungs[side].astype(np.float32), at) for side in SIDES}
    regions = np.where(lungs[-1] > lungs[1], Region.RIGHT_LUNG, Region.LEFT_LUNG)
    regions = np.where(lungs[-1] + lungs[1] > 0.5, regions, Region.BACKGROUND).astype(np.uint8)
    nearest = np.ix_(*(np.rint(p).astype(int).clip(0, n - 1) for p, n in zip(at, frame.shape, strict=True)))
    seen = _breathing(sampled(hu, at), regions, grid, rng)
    count = max(1, int(lung.both.sum()))
    planted = Lesions(seen, float(glass.sum() / count), float(solid.sum() / count))
    return RandomBody(seen, regions, inner[nearest], sampled(glass, at), sampled(solid, at), planted)


def _whole_chest(patient: Patient, grid: Grid, rng: Generator, *, has_contrast: bool) -> _Whole:
    """Draw bodies until one fits into the scan as a whole chest."""
    heights = round(HEIGHT_MM / STEP_MM)
    rows, columns = (
        int(np.ceil(n * s / STEP_MM)) + 2 for n, s in zip(grid.shape[1:], grid.spacing_mm[1:], strict=True)
    )
    for _ in range(MOST_DRAWS):
        centre = (rng.normal(-34, 3), rng.normal(6, 5), rng.normal(0, 5))
        frame = draw_frame((heights, rows, columns), STEP_MM, centre, rng)
        person = Person.of(patient.age_years, rng, is_female=patient.sex == "F")
        tissues = Tissues.draw(person, rng)
        tissues = replace(tissues, blood=rng.uniform(120, 450) if has_contrast else rng.uniform(25, 55))
        trunk = make_trunk(frame, tissues, person, rng)
        chest = make_chest(frame, trunk, tissues, person, rng)
        _fill_middle(frame, trunk, chest, tissues)
        if (middle := _middle_of_whole(chest, grid)) is None:
            continue
        gas = add_abdomen(frame, trunk, chest, tissues, rng)
        _thicken_diaphragm(frame, trunk, chest, gas, tissues)
        if _is_upright(trunk, chest):
            return _Whole(frame, tissues, trunk, chest, middle)
    raise RuntimeError(f"no whole chest in {MOST_DRAWS} bodies on {grid}")


def _middle_of_whole(chest: Chest, grid: Grid) -> float | None:
    """Return the middle of the lungs' height in voxels, or None for lungs that are not whole in such a scan."""
    sizes = {side: np.count_nonzero(chest.lungs[side]) * STEP_MM**3 / 1000 for side in SIDES}
    total = sum(sizes.values())
    if not LUNGS_ML[0] <= total <= LUNGS_ML[1] or min(sizes.values()) < LEAST_SMALLER_LUNG * total:
        return None
    both = chest.lungs[-1] | chest.lungs[1]
    low, *_, high = np.flatnonzero(both.any(axis=(1, 2)))
    extent_mm = (high - low + 1) * STEP_MM
    at_edge = any(both[:, end].any() or both[:, :, end].any() for end in (0, 1, -1, -2))
    if at_edge or low == 0 or high == len(both) - 1 or extent_mm + 2 * MARGIN_MM > grid.shape[0] * grid.spacing_mm[0]:
        return None
    return float(low + high) / 2


def _after_a_breath(frame: Frame, chest: Chest, rng: Generator) -> Lung:
    """Draw healthy lungs until they are inflated: patients are asked to breathe in."""
    for _ in range(MOST_DRAWS):
        lung = healthy(frame, chest, rng)
        if np.percentile(lung.hu[lung.both], 15) < INFLATED_HU:
            return lung
    raise RuntimeError(f"no inflated lungs in {MOST_DRAWS} draws")


def _fill_middle(frame: Frame, trunk: Trunk, chest: Chest, tissues: Tissues) -> None:
    """Fill the middle with fat before the heart and with crura of the diaphragm below: lung is rare there."""
    fat = (np.abs(frame.x - 5) < 30) & (frame.y < 10) & (frame.z < -65)
    crura = (np.abs(frame.x) < 28) & (frame.z < -105)
    for side in SIDES:
        trunk.hu[crura & chest.lungs[side]] = tissues.muscle
        trunk.hu[fat & chest.lungs[side]] = tissues.fat
        chest.lungs[side] = largest_piece(chest.lungs[side] & ~fat & ~crura)


def _thicken_diaphragm(frame: Frame, trunk: Trunk, chest: Chest, gas: Mask, tissues: Tissues) -> None:
    """Keep WALL_MM between gas and lung, because a thinner wall disappears in voxels of 4 mm."""
    for side in SIDES:
        near = gas & (side * frame.x > 0) & (frame.z > chest.floor[side] - WALL_MM)
        trunk.hu[near] = tissues.muscle


def _is_upright(trunk: Trunk, chest: Chest) -> bool:
    """Whether spine, trachea and heart lie where `measures` expects them in a patient who lies on the back."""
    lungs = chest.lungs[-1] | chest.lungs[1]
    hu = np.where(lungs, AERATED_LUNG_HU, trunk.hu).astype(np.float32)
    nothing = np.zeros(0, np.float16)
    seen = Prepared(nothing, hu, lungs, STEP_MM, 0.0, 0.0, np.eye(4), box=())
    spine, trachea, heart = body_pose(seen)
    return not is_turned(spine, trachea) and trachea > LEAST_TRACHEA_MM2 and heart > LEAST_HEART_LEFT


def _pneumonia(lung: Lung, frame: Frame, patient: Patient, rng: Generator, density: float) -> tuple[Field, Field]:
    """Plant the patient's pneumonia; return the ground glass and consolidation that belong to it."""
    empty = np.zeros(frame.shape, np.float32)
    if patient.pattern == "none" or patient.load <= 0:
        return empty, empty
    unrelated = lung.consolidation.copy()
    plant(lung, frame, patient.pattern, rng, load=patient.load, consolidated=patient.consolidated)
    glass, solid = (np.where(lung.both, field, 0) for field in (lung.ground_glass, lung.consolidation))
    lung.ground_glass = density * lung.ground_glass
    lung.consolidation = np.maximum(density * lung.consolidation, unrelated)
    return glass, solid


def _positions(frame: Frame, grid: Grid, middle: float, rng: Generator) -> tuple[NDArray[np.float64], ...]:
    """Return the places of the scan's slices, rows and columns in the body's grid, in voxels.

    In some patients a breath between two parts of the scan repeats or leaves out some millimetres at a slice.
    """
    centres = (middle, (frame.shape[1] - 1) / 2, (frame.shape[2] - 1) / 2)
    at: list[NDArray[np.float64]] = [
        (centre + (np.arange(n) - (n - 1) / 2) * spacing / STEP_MM).astype(np.float64)
        for centre, n, spacing in zip(centres, grid.shape, grid.spacing_mm, strict=True)
    ]
    if rng.random() < 0.12:
        below = int(rng.integers(grid.shape[0] // 6, grid.shape[0] // 2))
        at[0][:below] += rng.uniform(-6, 6) / STEP_MM
    return tuple(at)


def sampled(field: Field, at: tuple[NDArray[np.float64], ...]) -> Field:
    """Return a field at positions along each axis, in voxels, by cubic B-splines without prefilter."""
    for axis, positions in enumerate(at):
        away = np.abs(positions[:, None] - np.arange(field.shape[axis])[None])
        weights = cubic_b_spline(away)
        weights /= np.maximum(weights.sum(axis=1, keepdims=True), 1e-6)  # at the ends of the grid
        field = np.moveaxis(np.tensordot(weights.astype(np.float32), field, axes=(1, axis)), 0, axis)
    return np.ascontiguousarray(field)


def _breathing(hu: Field, regions: NDArray[np.uint8], grid: Grid, rng: Generator) -> Field:
    """Blur the lower lungs of some patients along the body, as breath during the scan does."""
    if rng.random() >= 0.15:
        return hu
    blurred = ndimage.gaussian_filter1d(hu, rng.uniform(2, 7) / grid.spacing_mm[0], axis=0)
    heights = np.flatnonzero(np.any(regions != Region.BACKGROUND, axis=(1, 2)))
    rise = (np.arange(len(hu)) - heights[0]) / max(1, len(heights))
    weight = np.clip(1 - rise / rng.uniform(0.2, 0.6), 0, 1)[:, None, None]
    return np.asarray(hu + weight * (blurred - hu), np.float32)
