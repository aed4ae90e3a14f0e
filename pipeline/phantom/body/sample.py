"""One synthetic scan with its label map: the anatomy put together, in the order in which organs displace each other."""

from dataclasses import dataclass, replace

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from models.lung_segmenter import Region, Tissue
from pipeline.phantom.body.abdomen import USUAL, Gas, add_abdomen
from pipeline.phantom.body.acquisition import LOWEST_HU, acquire, circle
from pipeline.phantom.body.chest import Chest, make_chest
from pipeline.phantom.body.disease import Lung, add_disease, add_layers_of_fluid, add_solid_lung, fill_side, healthy
from pipeline.phantom.body.frame import SIDES, Field, Frame, Mask, Point, draw_frame
from pipeline.phantom.body.person import Person
from pipeline.phantom.body.surgery import Surgery
from pipeline.phantom.body.trees import filled_share, grow
from pipeline.phantom.body.trunk import Tissues, make_trunk

STEP_MM = 4.0  # the working grid of preprocessing
Dense = tuple[float, float]  # HU of consolidation, and HU that ground glass adds to the lung
_HALF = 0.5  # of a voxel, to be counted as the tissue


@dataclass(frozen=True)
class Sample:
    """A scan and what is in it.

    `hu`: float32. `regions`: uint8, values of `Region`. `tissues`: uint8, values of `Tissue`, which hold inside the
    lungs. All have shape (slices, rows, columns), slice 0 lowest, rows to the back, columns to the patient's left.
    """

    hu: Field
    regions: NDArray[np.uint8]
    tissues: NDArray[np.uint8]
    step_mm: float


@dataclass(frozen=True)
class Variety:
    """What some bodies have beyond the usual, as chances.

    `solid`: of an ill body to have more solid lung (`add_disease`). `turned`: to lie on one side, or apart from the
    middle of the images, in a larger field of view. `muscles`: to have muscles at shoulders, back and breast; others
    have fat there. `tubes`: to have one in the trachea, as a patient who is ventilated. `aorta`: to have one that is
    wide, and left of the spine or beside it. `arch`: to have an aorta with a high arch that reaches far to the left;
    not together with `aorta`. `fluid`: to have a layer of fluid along the chest wall, less dense than solid lung.
    `full_side`: to have fluid that fills one side, whose lung was removed or is pressed together.
    `solid_lung`: to have a lung, or both, most of which is solid.
    """

    solid: float = 0.0
    turned: float = 0.0
    muscles: float = 0.0
    tubes: float = 0.0
    aorta: float = 0.0
    arch: float = 0.0
    fluid: float = 0.0
    full_side: float = 0.0
    solid_lung: float = 0.0


PLAIN = Variety()


def draw_sample(rng: Generator, step_mm: float = STEP_MM, gas: Gas = USUAL, variety: Variety = PLAIN) -> Sample:
    """Draw one scan: body, disease and scanner, all at random."""
    extent = rng.uniform((230, 230, 310), (360, 320, 420))  # millimetres
    own = rng.spawn(1)[0]  # of its own, so that a body that does not lie turned is the same without variety
    moved, turn_deg = (0.0, 0.0, 0.0), (0.0, 0.0, 0.0)
    if own.random() < variety.turned:
        extent = np.maximum(extent, own.uniform((230, 230, 310), (440, 380, 500)))
        moved, turn_deg = _lying(own)
    shape = tuple(int(np.ceil(side / step_mm / 8)) * 8 for side in extent)
    centre = (rng.uniform(-60, 0), rng.uniform(-5, 20), rng.uniform(-12, 12))
    at = (centre[0] + moved[0], centre[1] + moved[1], centre[2] + moved[2])
    frame = draw_frame((shape[0], shape[1], shape[2]), step_mm, at, rng, turn_deg)
    body = compose(frame, rng, gas=gas, variety=variety)
    seen = acquire(body.hu, step_mm, rng)
    outside = circle(seen.shape, rng)
    if outside is not None:
        seen[outside] = LOWEST_HU
    return replace(body, hu=seen)


def _lying(rng: Generator) -> tuple[Point, Point]:
    """Return how a body lies apart from the middle of the images, in mm, and its turn in degrees, both (z, y, x)."""
    around_z, around_y, around_x = rng.normal(0, (16.0, 6.0, 6.0))
    return (rng.uniform(-30, 50), rng.uniform(-30, 30), rng.uniform(-45, 45)), (around_z, around_y, around_x)


def compose(
    frame: Frame, rng: Generator, dense: Dense | None = None, gas: Gas = USUAL, variety: Variety = PLAIN
) -> Sample:
    """Draw a body with its disease into a frame, without a scanner. `dense`: drawn too if None."""
    # Generators of their own, so that a body without an option is the same.
    muscles, tubes, aorta, arch, fluid, full, solid = rng.spawn(7)
    person = Person.draw(rng)
    tissues = Tissues.draw(person, rng)
    trunk = make_trunk(frame, tissues, person, rng, muscles if muscles.random() < variety.muscles else None)
    own_tubes = tubes if tubes.random() < variety.tubes else None
    own_aorta = aorta if aorta.random() < variety.aorta else None
    own_arch = arch if own_aorta is None and arch.random() < variety.arch else None
    full_side = Surgery.draw_full_side(full) if full.random() < variety.full_side else None
    chest = make_chest(frame, trunk, tissues, person, rng, own_tubes, own_aorta, own_arch, full_side)
    bowel_gas = add_abdomen(frame, trunk, chest, tissues, rng, gas)
    lung = healthy(frame, chest, rng)
    add_disease(lung, frame, person, rng, variety.solid)
    if solid.random() < variety.solid_lung:
        add_solid_lung(lung, frame, solid)
        dense = (solid.uniform(20, 75), solid.uniform(120, 480))  # denser than fluid, or nobody could tell them apart
    if fluid.random() < variety.fluid:
        denser = add_layers_of_fluid(lung, frame, fluid) + fluid.uniform(15, 75)
        dense = (denser, fluid.uniform(120, 480))
    if full_side and not full_side.without:
        denser = fill_side(lung, frame, full_side.side, chest.hila[full_side.side], full) + full.uniform(15, 75)
        dense = (denser, full.uniform(120, 480))
    hu, inner = lungs_into(trunk.hu, lung, chest, tissues, frame, rng, dense)
    devices(frame, hu, trunk.body, lung.both, rng)
    return Sample(hu, _regions(chest, lung, bowel_gas), inner, frame.step_mm)


def lungs_into(
    hu: Field, lung: Lung, chest: Chest, tissues: Tissues, frame: Frame, rng: Generator, dense: Dense | None = None
) -> tuple[Field, NDArray[np.uint8]]:
    """Write lungs with vessels, bronchi and disease into `hu`; return the tissues inside the lungs."""
    vessels, lumen, wall = _branches(lung, chest, frame, rng)
    solid_hu, glass_hu = dense or (rng.uniform(-10, 70), rng.uniform(120, 480))
    texture = 1 + rng.uniform(0, 0.4) * frame.noise(6, rng)
    inside = lung.hu + glass_hu * np.clip(texture, 0.2, 2) * lung.ground_glass
    inside = inside + lung.consolidation * (solid_hu + 12 * frame.noise(8, rng) - inside)
    inside = np.clip(inside, -1000, 150)
    inside = inside + vessels * (tissues.blood - inside)
    inside = inside + wall * (20 - inside)
    inside = inside + lumen * (-990 - inside)
    written = np.where(lung.both, inside, hu)
    fluid = ~np.isnan(lung.outside_hu)
    written[fluid] = lung.outside_hu[fluid]
    labels = np.full(frame.shape, Tissue.PARENCHYMA, np.uint8)
    labels[lung.ground_glass > _HALF] = Tissue.GROUND_GLASS
    labels[lung.consolidation > _HALF] = Tissue.CONSOLIDATION
    free = lung.consolidation <= _HALF  # vessels cannot be seen in consolidation
    labels[(vessels + wall > 0.3) & free] = Tissue.VESSEL
    labels[(lumen > _HALF) & free] = Tissue.AIRWAY
    return written.astype(np.float32), np.where(lung.both, labels, Tissue.PARENCHYMA).astype(np.uint8)


def _branches(lung: Lung, chest: Chest, frame: Frame, rng: Generator) -> tuple[Field, Field, Field]:
    """Return the shares of each voxel that vessels, lumen of bronchi and walls of bronchi fill."""
    vessels, bronchi = [], []
    for side in SIDES:
        mine = lung.lungs[side]
        if mine.sum() < 500:
            continue
        root = _voxel_of(frame, chest.hila[side])
        for _ in range(2):  # arteries and veins
            start = root + rng.normal(0, 2, 3)
            leaves, thin = int(rng.integers(60, 220)), rng.uniform(0.6, 1.2)
            vessels.append(grow(start, mine, frame, rng, leaves=leaves, leaf_mm=thin))
        bronchi.append(grow(root, mine, frame, rng, leaves=int(rng.integers(9, 26)), leaf_mm=rng.uniform(0.8, 1.8)))
    thick = rng.uniform(0.5, 1.2) if rng.random() < 0.8 else rng.uniform(1.2, 2.5)
    blood = filled_share(vessels, frame)
    lumen = filled_share(bronchi, frame)
    wall = np.clip(filled_share(bronchi, frame, thicker_mm=thick) - lumen, 0, 1)
    wanted = np.float32(rng.uniform(0.7, 1.8))
    return np.minimum(wanted * blood, 1), lumen, wall


def _voxel_of(frame: Frame, point: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the index of the voxel nearest to a point of the body."""
    away = (frame.z - point[0]) ** 2 + (frame.y - point[1]) ** 2 + (frame.x - point[2]) ** 2
    return np.array(np.unravel_index(int(np.argmin(away)), frame.shape), float)


def devices(frame: Frame, hu: Field, body: Mask, lungs: Mask, rng: Generator) -> None:
    """Add a pacemaker, lines, tubes and electrodes in some patients."""
    if rng.random() < 0.06:
        side = rng.choice(SIDES)
        box = frame.ellipsoid((rng.uniform(30, 60), -105, side * 85), (22, 9, 24)) < 1
        hu[box] = 3000
    for _ in range(rng.integers(0, 3) if rng.random() < 0.25 else 0):
        start = np.array([rng.uniform(60, 110), rng.uniform(-20, 10), rng.uniform(-30, 30)])
        run = np.array([-rng.uniform(60, 180), rng.uniform(-20, 20), rng.uniform(-15, 15)])
        path = np.linspace(start, start + run, 40)
        line = frame.tube(path, 2.6)
        hu[line & ~lungs] = rng.uniform(300, 2500)
    if rng.random() < 0.2:
        for _ in range(rng.integers(2, 6)):
            at = (rng.uniform(-120, 80), -rng.uniform(95, 140), rng.uniform(-110, 110))
            hu[(frame.ellipsoid(at, (6, 4, 6)) < 1) & ~lungs] = rng.uniform(300, 3000)


def _regions(chest: Chest, lung: Lung, gas: Mask) -> NDArray[np.uint8]:
    regions = np.full(gas.shape, Region.BACKGROUND, np.uint8)
    regions[chest.middle] = Region.MEDIASTINUM
    regions[gas] = Region.BOWEL_GAS
    regions[chest.airways] = Region.AIRWAY
    regions[lung.lungs[-1]] = Region.RIGHT_LUNG
    regions[lung.lungs[1]] = Region.LEFT_LUNG
    return regions
