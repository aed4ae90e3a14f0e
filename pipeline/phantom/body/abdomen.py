"""The upper abdomen: liver, spleen, kidneys, and stomach and colon with the gas that thresholds take for lung."""

from dataclasses import dataclass

import numpy as np
from numpy.random import Generator

from pipeline.phantom.body.chest import Chest
from pipeline.phantom.body.frame import SIDES, Field, Frame, Mask
from pipeline.phantom.body.trunk import Tissues, Trunk


@dataclass(frozen=True)
class Gas:
    """How often gas lies where it is easily taken for lung, and how far a flexure of the colon may be below a dome."""

    free_air: float = 0.02  # below the diaphragm
    before_liver: float = 0.08  # of each loop of the bowel
    flexure_mm: float = 60.0


USUAL = Gas()
# Rare in patients, but a network that seldom sees such gas does not learn to tell it from lung.
DIFFICULT = Gas(free_air=0.35, before_liver=0.5, flexure_mm=25.0)


def add_abdomen(frame: Frame, trunk: Trunk, chest: Chest, tissues: Tissues, rng: Generator, often: Gas = USUAL) -> Mask:
    """Write the organs below the diaphragm into `trunk.hu`; return the gas in stomach and bowel."""
    below = np.zeros(frame.shape, bool)
    for side in SIDES:
        below |= (frame.z < chest.floor[side] - 3) & (side * frame.x > 0)
    below &= (trunk.cage < 1.02) & ~trunk.spine & trunk.body & ~chest.lungs[-1] & ~chest.lungs[1]
    hu = trunk.hu
    texture = frame.noise(10, rng)
    hu[below] = np.where(texture > rng.uniform(-0.5, 1.5), tissues.muscle, tissues.fat)[below]
    tops = {side: float(np.max(chest.floor[side])) for side in SIDES}
    liver = below & _liver(frame, tops[-1], rng)
    hu[liver] = tissues.liver
    hu[liver & (frame.noise(12, rng) > 2)] += rng.uniform(-40, 90)
    spleen = below & (frame.ellipsoid((tops[1] - 40, 55, 85), (45, 30, 32)) < 1)
    hu[spleen] = rng.uniform(35, 130)
    for side in SIDES:
        kidney = below & (frame.ellipsoid((rng.uniform(-260, -215), 55, side * 55), (50, 26, 26)) < 1)
        hu[kidney] = rng.uniform(20, 200)
    gas = np.zeros(frame.shape, bool)
    if rng.random() < 0.85:
        gas |= _stomach(frame, hu, below & ~liver, tops[1], rng)
    for path, radius in _bowel(tops, rng, often.flexure_mm):
        gas |= _loop(frame, hu, below & (~liver | (rng.random() < often.before_liver)), path, radius, rng)
    if rng.random() < often.free_air:
        free = below & (frame.z > chest.floor[-1] - rng.uniform(8, 20)) & (frame.x < 0) & (frame.y < -10)
        hu[free] = -1000
        gas |= free
    return gas


def _liver(frame: Frame, top_mm: float, rng: Generator) -> Mask:
    right = frame.ellipsoid((top_mm - 70, -5, -70), (90, 100, rng.uniform(75, 100))) < 1
    left = frame.ellipsoid((top_mm - 55, -45, 0), (50, 45, rng.uniform(50, 110))) < 1
    return right | left


def _stomach(frame: Frame, hu: Field, where: Mask, top_mm: float, rng: Generator) -> Mask:
    """Fill a stomach to a level; gas rises to the front of a patient who lies on the back, or to the top."""
    big = rng.uniform(0.6, 1.6)
    centre = (top_mm - 45 * big + rng.uniform(-15, 12), rng.uniform(-40, 15), rng.uniform(45, 85))
    radius = frame.ellipsoid(centre, (48 * big, 40 * big, 42 * big)) + 0.08 * frame.noise(15, rng)
    inside, wall = where & (radius < 1), where & (radius < 1.12)
    hu[wall] = rng.uniform(20, 90)
    hu[inside] = rng.uniform(-30, 80)
    food = inside & (frame.noise(8, rng) > 0.8)
    hu[food] = rng.uniform(-250, 150)
    level = centre[1] + rng.uniform(-45, 60)
    is_prone = rng.random() < 0.07
    gas = inside & ((frame.y > level) if is_prone else (frame.y < level))
    hu[gas] = rng.uniform(-1005, -900)
    return np.asarray(gas)


def _bowel(tops: dict[int, float], rng: Generator, flexure_mm: float) -> list[tuple[np.ndarray, float]]:
    """Return paths of loops and their radii: both flexures, the transverse colon, and some smaller loops."""
    loops = []
    walk = np.linspace(0, 1, 26)[:, None]
    for side, chance in ((1, 0.8), (-1, 0.35)):
        if rng.random() < chance:
            top = tops[side] - rng.uniform(6, flexure_mm)
            peak = np.array([top, rng.uniform(-30, 45), side * rng.uniform(60, 105)])
            start = peak + np.array([-110, rng.uniform(0, 40), side * rng.uniform(0, 20)])
            end = peak - np.array([rng.uniform(50, 110), rng.uniform(20, 60), side * rng.uniform(20, 60)])
            path = (1 - walk) ** 2 * start + 2 * walk * (1 - walk) * (peak * 1.6 - 0.3 * (start + end)) + walk**2 * end
            loops.append((path, rng.uniform(12, 34)))
    if rng.random() < 0.7:
        high = max(tops.values()) - rng.uniform(40, 130)
        across = np.linspace(-95, 95, 30)
        path = np.stack([high - 25 * np.cos(across / 70), np.full(30, rng.uniform(-75, -45)), across], 1)
        loops.append((path, rng.uniform(12, 28)))
    for _ in range(rng.integers(0, 6)):
        start = np.array([rng.uniform(-250, -140), rng.uniform(-60, 30), rng.uniform(-80, 90)])
        path = start + np.cumsum(rng.normal(0, 9, (12, 3)), axis=0)
        loops.append((path, rng.uniform(6, 15)))
    return loops


def _loop(frame: Frame, hu: Field, where: Mask, path: np.ndarray, radius_mm: float, rng: Generator) -> Mask:
    """Place one loop with haustra: gas, fluid with a level, or stool with bubbles."""
    along = np.linspace(0, 1, len(path)) * rng.uniform(15, 45)
    radii = radius_mm * (1 + rng.uniform(0.05, 0.3) * np.sin(along))
    wall = where & frame.tube(path, radii + 3)
    inside = where & frame.tube(path, radii)
    hu[wall] = rng.uniform(10, 80)
    kind = rng.random()
    if kind < 0.5:
        gas = inside
    elif kind < 0.75:
        gas = inside & (frame.y < path[:, 1].mean() + rng.uniform(-10, 15))
    else:
        gas = inside & (frame.noise(6, rng) > rng.uniform(-0.3, 1.0))
    hu[inside] = rng.uniform(-120, 90)
    hu[gas] = rng.uniform(-1005, -850)
    return np.asarray(gas)
