"""What changes a lung: ground glass, consolidation, effusion, collapse, emphysema, scars, nodules.

Covid-19 pneumonia is peripheral, basal and multifocal, and touches the pleura (Salehi et al., AJR 2020; 215:87-93).
"""

from dataclasses import dataclass

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from scipy import ndimage

from pipeline.phantom.body.chest import Chest
from pipeline.phantom.body.frame import SIDES, Field, Frame, Mask
from pipeline.phantom.body.person import Person


@dataclass
class Lung:
    """Both lungs while disease is added.

    `hu`: parenchyma. `ground_glass`, `consolidation`: shares of each voxel, 0 to 1. `lungs`: by side; an effusion makes
    a lung smaller. `outside_hu`: HU of what took the place of lung, NaN elsewhere. `depth_mm`: distance to the surface.
    """

    hu: Field
    ground_glass: Field
    consolidation: Field
    lungs: dict[int, Mask]
    outside_hu: Field
    depth_mm: Field

    @property
    def both(self) -> Mask:
        """Either lung."""
        return self.lungs[-1] | self.lungs[1]


def healthy(frame: Frame, chest: Chest, rng: Generator) -> Lung:
    """Return parenchyma without disease: breath, gravity in either direction, mosaic, dense lung at the back."""
    both = chest.lungs[-1] | chest.lungs[1]
    depth = ndimage.distance_transform_edt(both).astype(np.float32) * frame.step_mm
    base = rng.choice([rng.normal(-865, 30), rng.uniform(-940, -740)], p=[0.7, 0.3])
    hu = np.full(frame.shape, base, np.float32) + rng.uniform(-0.3, 1.0) * frame.y + rng.uniform(-0.3, 0.3) * frame.z
    hu += rng.uniform(3, 25) * frame.noise(30, rng) + rng.uniform(0, 15) * frame.noise(10, rng)
    if rng.random() < 0.35:  # dense lung at the back, as everyone has who lies still
        back = _behind(both, frame)
        hu += rng.uniform(80, 450) * np.exp(-((back / rng.uniform(5, 22)) ** 2))
    if rng.random() < 0.15:  # air is trapped in parts
        hu += rng.uniform(40, 140) * (frame.noise(35, rng) > 0.3)
    empty = np.zeros(frame.shape, np.float32)
    return Lung(hu, empty.copy(), empty.copy(), dict(chest.lungs), np.full_like(empty, np.nan), depth)


def _behind(lungs: Mask, frame: Frame) -> Field:
    """Return how much lung lies behind each voxel, in mm."""
    return np.cumsum(lungs[:, ::-1], axis=1, dtype=np.float32)[:, ::-1] * frame.step_mm


def add_disease(lung: Lung, frame: Frame, person: Person, rng: Generator, solid: float = 0.0) -> None:
    """Draw diseases and add them: none in a third of the patients, Covid-19's kind in a third.

    `solid`: chance that an ill patient also has foci that are solid up to their edge, or pneumonia of a lobe.
    """
    kind = rng.choice(["none", "covid", "other"], p=[0.33, 0.37, 0.30])
    if rng.random() < 0.05 + 0.4 * person.wear:
        _emphysema(lung, frame, rng)
    if kind == "covid":
        _opacities(lung, frame, rng, count=int(rng.integers(2, 22)), size_mm=(12, 38), peripheral=True)
    if kind == "other":
        _opacities(lung, frame, rng, count=int(rng.integers(1, 4)), size_mm=(25, 75), peripheral=False)
    if kind == "other" and rng.random() < 0.3:
        _lobar(lung, frame, rng)
    if kind != "none" and rng.random() < 0.25:
        _rind(lung, frame, rng)
    if solid > 0 and kind != "none" and rng.random() < solid:
        (_lobar if rng.random() < 0.25 else _solid_foci)(lung, frame, rng)
    if rng.random() < (0.08 if kind == "none" else 0.25):
        _effusion(lung, frame, rng)
    if rng.random() < 0.2:
        _scars(lung, frame, rng)
    if rng.random() < 0.15:
        _nodules(lung, frame, rng)
    lung.ground_glass = np.clip(lung.ground_glass * (1 - lung.consolidation), 0, 1)


def _emphysema(lung: Lung, frame: Frame, rng: Generator) -> None:
    holes = np.clip(frame.noise(rng.uniform(5, 18), rng) - rng.uniform(0, 1.8), 0, 1) / 0.5
    upper = np.clip(0.5 + frame.z / 150 * rng.choice([-1, 1], p=[0.2, 0.8]), 0, 1)
    lung.hu += np.clip(holes, 0, 1) * upper * (rng.uniform(-990, -940) - lung.hu)
    if rng.random() < 0.25:  # bullae
        for _ in range(rng.integers(1, 4)):
            at = _point(lung.both, lung, rng, peripheral=True)
            inside = frame.ellipsoid(at, tuple(rng.uniform(12, 45, 3))) < 1
            lung.hu[inside] = rng.uniform(-1000, -970)


def _point(where: Mask, lung: Lung, rng: Generator, *, peripheral: bool) -> tuple[float, float, float]:
    """Return a point of the lung as (z, y, x) in voxels; callers turn it into the frame's millimetres."""
    places = np.argwhere(where)
    some = places[rng.integers(0, len(places), 40)]
    depth = lung.depth_mm[tuple(some.T)]
    weight = np.exp(-depth / 10) if peripheral else np.ones(len(some))
    chosen = some[rng.choice(len(some), p=weight / weight.sum())]
    return float(chosen[0]), float(chosen[1]), float(chosen[2])


def _blob(frame: Frame, at: tuple[float, float, float], radii_mm: np.ndarray, rough: Field) -> Field:
    """Return a soft ball around a voxel: normalised radius with a rough edge, below 1 inside."""
    index = tuple(int(v) for v in at)
    centre = (float(frame.z[index]), float(frame.y[index]), float(frame.x[index]))
    return frame.ellipsoid(centre, (radii_mm[0], radii_mm[1], radii_mm[2])) + rough


def _opacities(
    lung: Lung, frame: Frame, rng: Generator, *, count: int, size_mm: tuple[float, float], peripheral: bool
) -> None:
    rough = rng.uniform(0.1, 0.35) * frame.noise(rng.uniform(6, 14), rng)
    solid_share = rng.choice([0.0, rng.uniform(0.1, 0.6), rng.uniform(0.5, 1.1)])
    soft = rng.uniform(0.08, 0.5)
    places = lung.lungs[int(rng.choice(SIDES))] if rng.random() < (0.25 if peripheral else 0.8) else lung.both
    if rng.random() < 0.6:
        lower = places & (frame.z < np.median(frame.z[places])) if places.any() else places
        places = lower if lower.any() else places
    if not places.any():
        return
    for _ in range(count):
        at = _point(places, lung, rng, peripheral=peripheral)
        radii = rng.uniform(*size_mm) * rng.uniform(0.6, 1.4, 3)
        radius = _blob(frame, at, radii, rough)
        lung.ground_glass = np.maximum(lung.ground_glass, np.clip((1 - radius) / soft, 0, 1))
        if solid_share:
            core = np.clip((1 - radius / solid_share) / 0.2, 0, 1)
            lung.consolidation = np.maximum(lung.consolidation, core)


def _solid_foci(lung: Lung, frame: Frame, rng: Generator) -> None:
    """Add foci with a sharp edge and little or no ground glass around them, most of them at the pleura."""
    places = lung.both if rng.random() < 0.6 else lung.lungs[int(rng.choice(SIDES))]
    if rng.random() < 0.5 and places.any():
        limit = np.quantile(frame.z[places], rng.uniform(0.3, 0.9))
        places = places & (frame.z > limit if rng.random() < 0.4 else frame.z < limit)
    if not places.any():
        return
    rough = rng.uniform(0, 0.35) * frame.noise(rng.uniform(5, 14), rng)
    edge, rim = rng.uniform(0.02, 0.2), rng.choice([0.0, rng.uniform(0, 0.4)])
    largest = rng.uniform(12, 45)
    for _ in range(rng.integers(1, int(3 + 360 / largest))):
        at = _point(places, lung, rng, peripheral=bool(rng.random() < 0.85))
        radius = _blob(frame, at, rng.uniform(0.4, 1.0) * largest * rng.uniform(0.6, 1.3, 3), rough)
        lung.consolidation = np.maximum(lung.consolidation, np.clip((1 - radius) / edge, 0, 1))
        lung.ground_glass = np.maximum(lung.ground_glass, np.clip((1 + rim - radius) / edge, 0, 1) * (rim > 0))


def _lobar(lung: Lung, frame: Frame, rng: Generator) -> None:
    """Fill what lies on one side of a fissure, as pneumonia of a lobe does; the bronchi inside keep their air."""
    mine = lung.lungs[int(rng.choice(SIDES))]
    if not mine.any():
        return
    tilt = rng.uniform(0.3, 1.2)  # the oblique fissure rises to the back; the horizontal one has no tilt
    height = frame.z - tilt * frame.y * rng.choice([1.0, 0.0], p=[0.75, 0.25])
    cut = np.quantile(height[mine], rng.uniform(0.15, 0.6)) + 3 * frame.noise(40, rng)
    below = np.clip((cut - height) / 4 + 0.5, 0, 1) if rng.random() < 0.7 else np.clip((height - cut) / 4, 0, 1)
    patchy = np.clip(frame.noise(20, rng) + rng.uniform(0.5, 3), 0, 1)
    filled = (below * patchy * mine).astype(np.float32)
    if rng.random() < 0.8:
        lung.consolidation = np.maximum(lung.consolidation, filled)
    lung.ground_glass = np.maximum(lung.ground_glass, (below * mine).astype(np.float32))


def _rind(lung: Lung, frame: Frame, rng: Generator) -> None:
    """Add a band along the pleura, of ground glass or solid, mostly at the back."""
    thick = rng.uniform(5, 22) * (1 + 0.4 * frame.noise(20, rng))
    band = np.clip((thick - lung.depth_mm) / 6 + 0.5, 0, 1)
    band *= (frame.noise(40, rng) + frame.y / 50 > rng.uniform(-0.3, 1.2)) & lung.both
    if rng.random() < 0.5:
        lung.consolidation = np.maximum(lung.consolidation, band)
    else:
        lung.ground_glass = np.maximum(lung.ground_glass, band)


def _effusion(lung: Lung, frame: Frame, rng: Generator) -> None:
    """Let fluid take the back of one or both sides, and let the lung before it collapse."""
    fluid_hu = rng.uniform(-5, 35)
    for side in SIDES:
        if rng.random() < 0.45 or not lung.lungs[side].any():
            continue
        mine = lung.lungs[side]
        deepest = float(np.percentile(frame.y[mine], 99.5))
        level = deepest - rng.uniform(6, 75)
        surface = level - rng.uniform(0, 0.5) * (frame.z + 150) * -1 * 0.3 + 4 * frame.noise(25, rng)
        fluid = mine & (frame.y > surface)
        if fluid.sum() > 0.55 * mine.sum():
            continue
        lung.outside_hu[fluid] = fluid_hu
        lung.lungs[side] = mine & ~fluid
        rim = rng.uniform(3, 28)
        collapsed = np.clip((frame.y - (surface - rim)) / 6, 0, 1) * lung.lungs[side]
        lung.consolidation = np.maximum(lung.consolidation, collapsed.astype(np.float32))


def add_layers_of_fluid(lung: Lung, frame: Frame, rng: Generator) -> float:
    """Let a layer of fluid, thicker below, follow the wall of one or both sides, and return its HU.

    It is 4 to 45 mm at its thickest, as in ten patients whose fluid was drawn. Some lies in a pocket of the pleura.
    """
    fluid_hu = float(rng.uniform(-5, 22))
    sides = SIDES if rng.random() < 0.4 else (int(rng.choice(SIDES)),)
    for side in sides:
        mine = lung.lungs[side]
        if not mine.any():
            continue
        low, high = np.percentile(frame.z[mine], (1, 99))
        front, back = np.percentile(frame.y[mine], (5, 99))
        thickest_mm = float(np.exp(rng.uniform(np.log(4), np.log(45))))
        upwards = np.clip(1 - (frame.z - low) / (rng.uniform(0.3, 1.2) * (high - low)), 0, 1)
        to_back = np.clip((frame.y - front) / (rng.uniform(0.3, 1.0) * (back - front)), 0, 1)
        layer_mm = thickest_mm * upwards ** rng.uniform(0.3, 1.2) * to_back + 1.5 * frame.noise(25, rng)
        fluid = mine & (_behind(mine, frame) < layer_mm)
        if rng.random() < 0.2:
            at = _point(mine, lung, rng, peripheral=True)
            pocket = _blob(frame, at, rng.uniform(8, 40, 3), 0.1 * frame.noise(15, rng)) < 1
            fluid |= mine & pocket & (lung.depth_mm < rng.uniform(8, 30))
        if fluid.sum() > 0.55 * mine.sum():
            continue
        lung.outside_hu[fluid] = fluid_hu
        lung.lungs[side] = mine & ~fluid
        if rng.random() < 0.6:
            rim_mm = layer_mm + rng.uniform(2, 25) * upwards
            collapsed = lung.lungs[side] & (_behind(mine, frame) < rim_mm) & (layer_mm > 2)
            lung.consolidation = np.maximum(lung.consolidation, collapsed.astype(np.float32))
    return fluid_hu


def fill_side(lung: Lung, frame: Frame, side: int, hilum: NDArray[np.float64], rng: Generator) -> float:
    """Let fluid fill most of one side, press what is left of its lung to the hilum, and return the fluid's HU.

    `hilum`: the point (z, y, x) in mm where bronchi and vessels enter. What is left has little air, or none.
    """
    fluid_hu, mine = float(rng.uniform(-5, 25)), lung.lungs[side]
    at = hilum + np.array([rng.uniform(-10, 60), rng.uniform(-50, 10), side * rng.uniform(0, 30)])
    radii = rng.uniform((25, 18, 15), (110, 65, 50))
    radius = frame.ellipsoid(tuple(at), tuple(radii)) + 0.15 * frame.noise(20, rng)
    left = mine & (radius < 1)
    lung.outside_hu[mine & ~left] = fluid_hu
    lung.lungs[side] = left
    airless = np.clip((radius - rng.uniform(-0.5, 0.9)) / 0.2, 0, 1) * left
    lung.consolidation = np.maximum(lung.consolidation, airless.astype(np.float32))
    return fluid_hu


def add_solid_lung(lung: Lung, frame: Frame, rng: Generator) -> None:
    """Let 45 to 100 % of one lung or of both be solid, as in the severest pneumonia, without any fluid."""
    sides = SIDES if rng.random() < 0.35 else (int(rng.choice(SIDES)),)
    for side in sides:
        mine = lung.lungs[side]
        if not mine.any():
            continue
        patches = frame.noise(rng.uniform(12, 50), rng)
        order = patches + rng.uniform(-0.5, 1.5) * frame.y / 60 - rng.uniform(-0.5, 1.0) * frame.z / 80
        limit = np.quantile(order[mine], 1 - rng.uniform(0.45, 1.0))
        solid = np.clip((order - limit) / rng.uniform(0.05, 0.5) + 0.5, 0, 1) * rng.uniform(0.8, 1.0) * mine
        lung.consolidation = np.maximum(lung.consolidation, solid.astype(np.float32))
        if rng.random() < 0.6:
            lung.ground_glass = np.maximum(lung.ground_glass, (rng.uniform(0.2, 1.0) * mine).astype(np.float32))
    lung.ground_glass = lung.ground_glass * (1 - lung.consolidation)


def _scars(lung: Lung, frame: Frame, rng: Generator) -> None:
    """Add bands, a net of thick septa, or wide bronchi with thick walls."""
    kind = rng.random()
    near = np.exp(-lung.depth_mm / rng.uniform(8, 40))
    if kind < 0.4:
        sheets = np.abs(frame.noise(rng.uniform(12, 30), rng)) < rng.uniform(0.03, 0.1)
        lung.hu += sheets * near * rng.uniform(150, 700)
    elif kind < 0.75:
        net = np.abs(frame.noise(6, rng)) < 0.25
        where = np.clip(frame.noise(30, rng) + near - rng.uniform(0, 1), 0, 1)
        lung.hu += where * np.where(net, rng.uniform(150, 450), rng.uniform(-60, 60))
    else:
        where = np.clip(frame.noise(30, rng) - 0.3, 0, 1)
        field = frame.noise(7, rng)
        lung.hu += where * np.where(field > 0.9, -80, np.where(field > 0.2, 350, 60))


def _nodules(lung: Lung, frame: Frame, rng: Generator) -> None:
    for _ in range(rng.integers(1, 8)):
        if not lung.both.any():
            return
        at = _point(lung.both, lung, rng, peripheral=bool(rng.random() < 0.5))
        radius = rng.uniform(3, 9) if rng.random() < 0.85 else rng.uniform(9, 30)
        inside = _blob(frame, at, np.full(3, radius), np.zeros((), np.float32)) < 1
        lung.hu[inside & lung.both] = rng.uniform(-100, 120)
        if radius > 9:
            lung.consolidation[inside & lung.both] = 1


def add_unrelated(lung: Lung, frame: Frame, rng: Generator, *, emphysema: float, effusion: float) -> None:
    """Add what a patient has beside pneumonia: emphysema and effusion with these chances, scars, nodules."""
    if rng.random() < emphysema:
        _emphysema(lung, frame, rng)
    if rng.random() < effusion:
        _effusion(lung, frame, rng)
    if rng.random() < 0.2:
        _scars(lung, frame, rng)
    if rng.random() < 0.15:
        _nodules(lung, frame, rng)
