"""The one real thorax with a label map, for `lungs.py`: whole, by thirds, disturbed, and with planted lesions.

The lesions are those of the synthetic hospitals, whose generator the segmenter never saw. A voxel that is partly lung
changes by that part.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from scipy import ndimage

from models.lung_segmenter import Region, Tissue
from pipeline.phantom.anatomy import Grid, Thorax
from pipeline.phantom.body.sample import STEP_MM
from pipeline.phantom.lesions import add_lesions
from pipeline.preprocessing.area_resample import area_means
from pipeline.preprocessing.lesion_burden import burden, median_density
from pipeline.preprocessing.lung_regions import LungRegions, dice, find_regions
from pipeline.preprocessing.lungs import find_lungs
from pipeline.preprocessing.preprocess import orient, resample
from pipeline.scoring.label_maps import nearest_on
from pipeline.scoring.single_scan import read_one

Mask = NDArray[np.bool_]
SPACING_MM = (STEP_MM, STEP_MM, STEP_MM)
SOME_LUNG = 0.05  # share of a voxel from which on a lesion may change it
PLAIN_HU = -850.0  # of lung, to which lesions are added before they are put into the scan
AERATED_BELOW_HU = -500.0  # a denser voxel of the scan, such as a vessel, gets no denser than the lesion
NOISE_HU = 6.0


@dataclass(frozen=True)
class RealThorax:
    """The scan on the working grid, and what its label map says.

    `hu`, `right`, `left`: shape (slices, rows, columns) of the working grid; HU, and shares of each voxel. `fine_hu`,
    `parts` and `kind`: on the scan's own grid. `parts`: thirds of the lungs, 9 to 11 left and 12 to 14 right. `kind`: 3
    vessel (Chest Imaging Platform).
    """

    hu: NDArray[np.float32]
    right: NDArray[np.float32]
    left: NDArray[np.float32]
    fine_hu: NDArray[np.int16]
    parts: NDArray[np.uint16]
    kind: NDArray[np.uint16]

    @classmethod
    def read(cls, folder: Path) -> "RealThorax":
        import SimpleITK

        volume = orient(read_one(folder / "ct-64Dicom").volume)
        labels = SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(folder / "lm-64.nrrd"))
        parts, kind = labels & 255, labels >> 8
        size = tuple(max(1, round(extent / STEP_MM)) for extent in volume.extent_mm)

        def coarse(values: NDArray[Any]) -> NDArray[np.float32]:
            return resample(area_means(values, size), size).numpy()

        sides = (coarse((low <= parts) & (parts < low + 3)) for low in (12, 9))
        return cls(coarse(volume.hu), *sides, volume.hu, parts, kind)


def planted(thorax: RealThorax, seeds: Iterable[int]) -> Iterator[tuple[NDArray[np.float32], LungRegions]]:
    """Yield the thorax with pneumonia of random kind and extent, and the true labels."""
    lungs = np.clip(thorax.right + thorax.left, 0, 1)
    is_lung = lungs > 0.5
    sides = np.where(thorax.left > thorax.right, np.uint8(Region.LEFT_LUNG), np.uint8(Region.RIGHT_LUNG)) * is_lung
    vessels = nearest_on(lungs.shape, (thorax.kind == 3).astype(np.uint8)) > 0
    plain = Thorax(np.full(lungs.shape, PLAIN_HU, np.float32), lungs > SOME_LUNG)
    for seed in seeds:
        rng = np.random.default_rng(seed)
        added = _lesions(plain, Grid(lungs.shape, SPACING_MM), rng) - PLAIN_HU
        tissues = np.where(vessels, Tissue.VESSEL, Tissue.PARENCHYMA)
        tissues = np.where(added > 100, Tissue.GROUND_GLASS, tissues)
        tissues = np.where(added > 400, Tissue.CONSOLIDATION, tissues)
        hu = thorax.hu + lungs * added
        hu = np.where(thorax.hu < AERATED_BELOW_HU, hu, np.maximum(thorax.hu, np.minimum(hu, PLAIN_HU + added)))
        hu = hu + rng.normal(0, NOISE_HU, hu.shape) * (added > 0)
        yield hu.astype(np.float32), LungRegions.of_labels(sides, (tissues * is_lung).astype(np.uint8))


def _lesions(plain: Thorax, grid: Grid, rng: Generator) -> NDArray[np.float32]:
    """Return HU of lung with lesions: foci of Covid-19's kind in two of three, of which some to most are solid."""
    return add_lesions(
        plain,
        grid,
        pattern=rng.choice(["covid", "covid", "other"]),
        load=rng.uniform(0.03, 0.4),
        consolidated=float(rng.choice([0.0, 0.2, 0.5, 0.8])),
        rng=rng,
        density=rng.uniform(1.0, 1.05),  # of consolidation: 20 to 64 HU
    ).hu


def figures(thorax: RealThorax) -> dict[str, Any]:
    """Return what the scan as it is shows, and how far disturbances change its mask."""
    hu, parts = thorax.hu, thorax.parts
    found = find_regions(hu, STEP_MM)
    shape = thorax.fine_hu.shape
    labelled = found.lungs_on(shape)
    threshold = LungRegions.of_mask(find_lungs(hu, SPACING_MM), 0).lungs_on(shape) > 0
    masks = {"both": labelled > 0, "right": labelled == 1, "left": labelled == 2}
    true = {"both": parts > 0, "right": parts >= 12, "left": (parts > 0) & (parts < 12)}
    vessels = nearest_on(shape, (found.tissues == Tissue.VESSEL).astype(np.uint8)) > 0
    seen = burden(hu, found, STEP_MM, density=median_density(thorax.fine_hu, hu.shape)).regions["both"]["whole"]
    return {
        "dice": {name: round(dice(masks[name], true[name]), 4) for name in true},
        "threshold": round(dice(threshold, true["both"]), 4),
        "thirds": thirds(labelled, parts),
        "vessels": {
            "dice": round(dice(vessels, thorax.kind == 3), 3),
            "found_near": round(near(thorax.kind == 3, vessels), 3),
        },
        "ground_glass": seen.ground_glass,
        "consolidation": seen.consolidation,
        "disturbed": disturbed(hu, found.lungs),
    }


def near(truth: Mask, found: Mask) -> float:
    """Return the share of true voxels that are found, or lie beside one that is."""
    return float((truth & ndimage.binary_dilation(found)).sum() / truth.sum())


def thirds(labelled: NDArray[np.uint8], part_of: NDArray[np.uint16]) -> dict[str, float]:
    """Return found over true volume of each lung in the slices of each third, where the label map divides them."""
    names = ("left upper", "left middle", "left lower", "right upper", "right middle", "right lower")
    answer = {}
    for value, name in enumerate(names, start=9):
        heights = np.flatnonzero((part_of == value).any(axis=(1, 2)))
        slab = slice(heights[0], heights[-1] + 1)
        own = labelled[slab] == (2 if value < 12 else 1)
        true = (part_of[slab] > 0) & ((part_of[slab] >= 12) == (value >= 12))
        answer[name] = round(float(own.sum() / true.sum()), 3)
    return answer


def disturbed(hu: NDArray[np.float32], mask: Mask) -> dict[str, float]:
    """Return the Dice coefficient of each disturbed scan's mask with the undisturbed one, moved alike."""
    rng = np.random.default_rng(0)
    answer = {}
    for axes, name in (((1, 2), "body's axis"), ((0, 1), "left-right axis"), ((0, 2), "front-back axis")):
        for degrees in (-10, 10):
            turned = ndimage.rotate(hu, degrees, axes, reshape=False, order=1, mode="constant", cval=-1000)
            wanted = ndimage.rotate(mask.astype(np.float32), degrees, axes, reshape=False, order=1) > 0.5
            answer[f"turned {degrees} degrees about the {name}"] = dice(find_regions(turned, STEP_MM).lungs, wanted)
    noise = rng.normal(0, 1, hu.shape)
    thick = ndimage.uniform_filter1d(hu, 2, axis=0)
    blurred = ndimage.gaussian_filter(hu, 0.7)
    changes = {
        "slices of 8 mm": thick,
        "noise of 20 HU": hu + 20 * noise,
        "noise of 40 HU": hu + 40 * noise,
        "smooth kernel": blurred,
        "sharp kernel": hu + 0.8 * (hu - blurred),
        "all HU 30 higher": hu + 30,
        "all HU 30 lower": hu - 30,
        "contrast agent": np.where((hu > 20) & (hu < 90), hu + 150, hu),
    }
    for name, changed in changes.items():
        answer[name] = dice(find_regions(changed.astype(np.float32), STEP_MM).lungs, mask)
    padded = np.pad(hu, ((6, 9), (10, 4), (5, 11)), constant_values=-1024)
    found = find_regions(padded, STEP_MM).lungs[6:-9, 10:-4, 5:-11]
    answer["padding around the scan"] = dice(found, mask)
    return {name: round(value, 4) for name, value in answer.items()}
