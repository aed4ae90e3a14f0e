"""The wall of the trunk: skin, fat, breasts, muscles, bones, arms; and what lies around the body."""

from dataclasses import dataclass

import numpy as np
from numpy.random import Generator
from scipy import ndimage

from pipeline.phantom.body.frame import Field, Frame, Mask
from pipeline.phantom.body.person import Person

WALL_MM = 11.0  # ribs and the muscles between them
_IN_PLANE = ndimage.generate_binary_structure(3, 1) & (np.arange(3) == 1)[:, None, None]  # neighbours in a slice


@dataclass(frozen=True)
class Trunk:
    """The trunk of a body.

    `cage`: normalised radius of the inner wall of the chest; below 1 inside. `body`: inside the skin. `hu`: of the
    body, filled with muscle, fat and bone, and of what lies around it. `spine`: the vertebrae, which no lung covers.
    `half_depth_mm`: from the middle of the chest to its inner wall at the back.
    """

    cage: Field
    body: Mask
    hu: Field
    spine: Mask
    half_depth_mm: float


@dataclass(frozen=True)
class Tissues:
    """Attenuation in HU of the tissues of one scan."""

    fat: float
    muscle: float
    blood: float
    bone: float
    marrow: float
    liver: float
    skin: float
    air: float

    @classmethod
    def draw(cls, person: Person, rng: Generator) -> "Tissues":
        """Draw attenuations at 80 to 140 kV; half of the scans have contrast agent. Bone loses calcium with age."""
        enhanced = rng.random() < 0.5
        return cls(
            fat=rng.uniform(-125, -75),
            muscle=rng.uniform(30, 70),
            blood=rng.uniform(80, 450) if enhanced else rng.uniform(25, 55),
            bone=rng.uniform(300, 900),
            marrow=rng.uniform(80, 320) * (1.1 - 0.4 * person.wear),
            liver=rng.uniform(0, 75) + (rng.uniform(0, 60) if enhanced else 0),
            skin=rng.uniform(-60, 40),
            air=rng.uniform(-1010, -975),
        )


def make_trunk(
    frame: Frame, tissues: Tissues, person: Person, rng: Generator, muscles: Generator | None = None
) -> Trunk:
    """Build the trunk with everything outside the pleura. `muscles`: draws those of shoulders, back and breast."""
    apex_mm, power = rng.uniform(90, 145), rng.uniform(2.0, 2.9)
    half_width, half_depth = person.size * rng.normal(132, 7), person.size * rng.normal(92, 8)
    above = np.clip((frame.z + rng.uniform(0, 25)) / apex_mm, 0, 0.999)
    narrow = np.sqrt(1 - above ** rng.uniform(1.3, 3.2))
    waist = 1 - rng.uniform(-0.1, 0.15) * np.clip((-frame.z - 90) / 100, 0, 1)
    across = np.abs(frame.x) / (half_width * waist * np.maximum(narrow, 1e-3))
    # The upper chest leans to the back, and the spine of the old is bent.
    bent = rng.uniform(0, 0.001) * person.wear * np.abs(frame.z) ** 1.5
    lean = np.asarray(rng.uniform(0, 0.2) * frame.z + bent, np.float32)
    along = np.abs(frame.y - lean) / (half_depth * waist * np.maximum(narrow**0.8, 1e-3))
    cage = ((across**power + along**power) ** (1 / power)).astype(np.float32)
    fat_mm = rng.choice([rng.uniform(3, 15), rng.uniform(10, 30), rng.uniform(25, 60)])
    muscle_mm = rng.uniform(6, 22)
    wall = _wall(frame, lean, half_width, half_depth, power, rng)
    outside_mm = (wall - 1) * half_depth
    body = outside_mm < WALL_MM + muscle_mm + fat_mm
    hu = np.full(frame.shape, tissues.air, np.float32)
    around = _around(frame, outside_mm, WALL_MM + muscle_mm + fat_mm, rng)
    hu = np.where(np.isnan(around), hu, around)
    breasts = _breasts(frame, half_depth + muscle_mm, person, rng)
    body |= breasts
    limbs = _arms_and_neck(frame, rng)
    body |= limbs
    hu[body] = tissues.fat
    hu[body & (outside_mm < WALL_MM + muscle_mm)] = tissues.muscle
    if muscles is not None:
        flesh = _muscles(frame, body, limbs & ~breasts, outside_mm - WALL_MM - muscle_mm, half_depth, muscles)
        hu[flesh] = tissues.muscle
    glands = breasts & (frame.noise(12, rng) > rng.uniform(-0.5, 2.0))
    hu[glands] = tissues.muscle - 20
    marbled = frame.noise(9, rng)
    hu[body & (marbled > 2.1) & (outside_mm > WALL_MM)] = tissues.fat
    _skin(hu, body, tissues)
    spine = _bones(frame, hu, body, cage, tissues, half_depth, rng)
    return Trunk(cage, body, hu, spine, half_depth)


def _wall(frame: Frame, lean: Field, width: float, depth: float, power: float, rng: Generator) -> Field:
    """Return the normalised radius of the outside of the ribs; it narrows to the neck more slowly than the inside."""
    above = np.clip((frame.z - rng.uniform(30, 60)) / rng.uniform(120, 180), 0, 1)
    shoulder = 1 - rng.uniform(0.1, 0.55) * above**1.5
    across, along = np.abs(frame.x) / (width * shoulder), np.abs(frame.y - lean) / (depth * shoulder)
    return ((across**power + along**power) ** (1 / power)).astype(np.float32)


def _around(frame: Frame, outside_mm: Field, skin_mm: float, rng: Generator) -> Field:
    """Return HU of the table, the mattress and clothes, NaN elsewhere."""
    hu = np.full(frame.shape, np.nan, np.float32)
    if rng.random() < 0.75:  # cloth, cables and blankets near the skin
        folds = (np.abs(outside_mm - skin_mm - rng.uniform(3, 18) - 4 * frame.noise(25, rng)) < 2.5) & (
            frame.noise(30, rng) > rng.uniform(-0.5, 1.5)
        )
        hu[folds] = rng.uniform(-950, -300)
    if rng.random() < 0.9:
        behind = frame.y - rng.uniform(0, 0.0018) * frame.x**2 - rng.uniform(125, 175)
        hu[(behind > 0) & (behind < 30)] = rng.uniform(-990, -850)
        hu[(behind > 30) & (behind < rng.uniform(34, 40))] = rng.uniform(-500, 200)
        hu[(behind > 60) & (behind < 66)] = rng.uniform(-600, 100)
    return hu


def _breasts(frame: Frame, front_mm: float, person: Person, rng: Generator) -> Mask:
    breasts = np.zeros(frame.shape, bool)
    if rng.random() < (0.1 if person.is_female else 0.85):
        return breasts
    size, apart, high = rng.uniform(25, 75), rng.uniform(55, 105), rng.uniform(-70, 0)
    for side in (-1, 1):
        if rng.random() < 0.05:
            continue  # after a mastectomy
        sag = rng.uniform(0, 25)  # of a patient who lies on the back, breasts fall to the side
        radii = (size * rng.uniform(0.9, 1.3), size * rng.uniform(0.5, 0.9), size)
        breasts |= frame.ellipsoid((high, -front_mm + sag, side * (apart + sag)), radii) < 1
    return breasts


def _arms_and_neck(frame: Frame, rng: Generator) -> Mask:
    limbs = np.asarray(
        (np.hypot(frame.x / rng.uniform(55, 75), (frame.y - 10) / rng.uniform(55, 75)) < 1) & (frame.z > 60)
    )
    limbs |= frame.ellipsoid((rng.uniform(80, 120), 25, 0), (rng.uniform(25, 55), 60, rng.uniform(130, 190))) < 1
    for side in (-1, 1):
        if rng.random() < 0.45:  # the arm lies beside the body
            far, radius = rng.uniform(185, 225), rng.uniform(32, 55)
            limbs |= np.hypot(frame.x - side * far, frame.y - rng.uniform(-10, 50)) < radius
        else:
            limbs |= np.hypot(frame.x - side * (150 + 0.2 * frame.z), frame.y - 20) < np.where(frame.z > 70, 45, 0)
    return limbs


def _muscles(frame: Frame, body: Mask, limbs: Mask, deep_mm: Field, half_depth: float, rng: Generator) -> Mask:
    """Return the muscles of arms, shoulders and neck, and those that make the wall thicker, with fat between them.

    `deep_mm`: distance from the muscles between and upon the ribs, which have the same thickness everywhere.
    """
    skin_mm = 4.0 * rng.integers(1, 4)
    below_skin = ndimage.binary_erosion(body, _IN_PLANE, iterations=max(1, round(skin_mm / frame.step_mm)))
    wasted = rng.uniform(0.4, 1.0)
    high = np.exp(-(((frame.z - rng.uniform(20, 60)) / rng.uniform(50, 80)) ** 2))
    breast = rng.uniform(8, 28) * high * (frame.y < 0) * (np.abs(frame.x) > 18)
    shoulder_blade = rng.uniform(8, 32) * high * (frame.y > -20) * (np.abs(frame.x) > 40)
    thick_mm = wasted * np.maximum(breast, shoulder_blade)
    beside_spine = rng.uniform(20, 34)
    erector = np.hypot(
        (np.abs(frame.x) - beside_spine) / (wasted * rng.uniform(20, 34)),
        (frame.y - half_depth - rng.uniform(2, 12)) / (wasted * rng.uniform(14, 26)),
    )
    flesh = limbs | (deep_mm < thick_mm) | ((erector < 1) & (deep_mm > -5))
    planes = np.abs(frame.noise(rng.uniform(14, 30), rng)) < rng.uniform(0.02, 0.25)
    return np.asarray(below_skin & flesh & ~planes)


def _skin(hu: Field, body: Mask, tissues: Tissues) -> None:
    """Line the body with skin, one voxel wide."""
    inner = body.copy()
    for axis in (1, 2):
        for step in (-1, 1):
            inner &= np.roll(body, step, axis)
    hu[body & ~inner] = tissues.skin


def _bones(
    frame: Frame, hu: Field, body: Mask, cage: Field, tissues: Tissues, half_depth: float, rng: Generator
) -> Mask:
    """Place ribs, cartilage, sternum, spine, scapulae, clavicles and humeri; return the vertebrae."""
    period, slant, turn = rng.uniform(24, 36), rng.uniform(0.3, 0.7), rng.uniform(0, 6.3)
    outside_mm = (cage - 1) * half_depth
    on_cage = (outside_mm > 1) & (outside_mm < WALL_MM) & (frame.z < 100)
    stripes = np.cos(2 * np.pi * (frame.z + slant * frame.y) / period + turn) > rng.uniform(0.1, 0.5)
    cartilage = (frame.y < -0.6 * half_depth) & (np.abs(frame.x) < 70)
    hu[body & on_cage & ~stripes] = tissues.muscle
    hu[body & on_cage & stripes & ~cartilage] = tissues.bone * 0.7
    hu[body & on_cage & stripes & cartilage] = rng.uniform(60, 250)
    sternum = (np.abs(frame.x) < rng.uniform(14, 22)) & (np.abs(frame.y + half_depth + 6) < 8) & (frame.z > -70)
    hu[body & sternum & (frame.z < 75)] = tissues.marrow
    for side in (-1, 1):
        blade = np.abs(frame.y - 0.75 * half_depth + side * 0.35 * (frame.x - side * 105) - 12) < 5
        blade &= (np.abs(frame.x - side * 105) < 45) & (frame.z > -40) & (frame.z < 85)
        hu[body & blade & (outside_mm > WALL_MM)] = tissues.bone * 0.8
        clavicle = np.hypot(frame.z - 88 - 0.15 * np.abs(frame.x), frame.y + 55 - 0.4 * np.abs(frame.x)) < 8
        hu[body & clavicle & (side * frame.x > 15) & (side * frame.x < 150)] = tissues.bone * 0.8
    hu[body & (np.hypot(np.abs(frame.x) - 170, frame.y - 20) < 22) & (frame.z > 55)] = tissues.marrow
    behind, radius = rng.uniform(0.62, 0.82) * half_depth, rng.uniform(15, 21)
    disc = np.cos(2 * np.pi * frame.z / rng.uniform(22, 28) + turn) > 0.8
    vertebra = np.hypot(frame.x, frame.y - behind) < radius
    hu[body & vertebra] = np.where(disc, 90, tissues.marrow)[body & vertebra]
    ring = np.abs(np.hypot(frame.x, frame.y - behind) - radius) < 2.5
    hu[body & ring] = tissues.bone * 0.8
    canal = np.hypot(frame.x, frame.y - behind - radius - 8) < 9
    process = (np.abs(frame.x) < 5 + 22 * (np.abs(frame.y - behind - radius - 4) < 6)) & (frame.y > behind + radius - 4)
    hu[body & process & (frame.y < behind + radius + 38) & ~disc] = tissues.bone * 0.7
    hu[body & canal] = 20
    return vertebra | ring
