"""What lies inside the chest: both lungs, and between them heart, great vessels, trachea, oesophagus and hila."""

from dataclasses import dataclass

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from scipy import ndimage

from pipeline.phantom.body.frame import SIDES, Field, Frame, Mask, joined
from pipeline.phantom.body.person import Person
from pipeline.phantom.body.surgery import Surgery
from pipeline.phantom.body.trunk import Tissues, Trunk
from pipeline.preprocessing.lungs import largest_piece

Path = NDArray[np.float64]


@dataclass(frozen=True)
class Chest:
    """The contents of a chest.

    `lungs`: by side (-1 right, 1 left). `airways`: lumen of trachea and bronchi outside the lungs. `middle`:
    mediastinum and hila. `hila`: by side the point (z, y, x) in mm where vessels and bronchi enter the lung.
    `floor`: by side the height of the diaphragm in mm, as a field over the grid.
    """

    lungs: dict[int, Mask]
    airways: Mask
    middle: Mask
    hila: dict[int, Path]
    floor: dict[int, Field]


def make_chest(
    frame: Frame,
    trunk: Trunk,
    tissues: Tissues,
    person: Person,
    rng: Generator,
    tubes: Generator | None = None,
    aorta: Generator | None = None,
    arch: Generator | None = None,
    full_side: Surgery | None = None,
) -> Chest:
    """Build the contents of the chest, and write their HU into `trunk.hu` except those of the lungs.

    `tubes`: draws those of a patient who is ventilated. `aorta`: draws a wide one, left of the spine or beside it.
    `arch`: draws an aorta with a high arch that reaches far into the left half of the chest. `full_side`: the side of
    the chest that is full of fluid.
    """
    drawn = Surgery.draw(rng)  # in any case, so that the rest is the same
    surgery = full_side or drawn
    walls, frame = frame, surgery.shifted(frame)
    hila = {side: np.array([rng.normal(-14, 6), rng.normal(2, 6), side * rng.uniform(30, 46)]) for side in SIDES}
    floor = {side: _diaphragm(walls, side, rng) + surgery.raised_mm(side) for side in SIDES}
    heart, heart_fat = _heart(frame, rng)
    vessels = _great_vessels(frame, trunk, rng)
    if aorta is not None:
        vessels[0] = vessels[0] | _wide_aorta(frame, trunk, aorta)
    trachea, bronchi, wall = _large_airways(frame, hila, rng)
    oesophagus, its_air = _oesophagus(frame, trunk, rng)
    hilum = {side: _hilum(frame, hila[side], rng) for side in SIDES}
    septum = _septum(frame, rng)
    if arch is not None:
        high, lung_before = _high_arch(frame, trunk, arch)
        vessels[0], septum = vessels[0] | high, septum & ~lung_before
    parts = [heart, heart_fat, *vessels, trachea, bronchi, wall, oesophagus, septum, _beside_spine(walls, trunk)]
    middle = joined(parts, frame, rng.uniform(6, 14)) | hilum[-1] | hilum[1]
    above = np.where(frame.x < 0, frame.z > floor[-1] - 6, frame.z > floor[1] - 6)
    at_back = (np.abs(frame.x) < 30) & (frame.y > 15)
    middle &= (trunk.cage < 1) & (above | at_back)
    heart, heart_fat = heart & above, heart_fat & above
    side_of = np.where(frame.x < _turn_of_septum(frame, rng), -1, 1)
    inner = trunk.cage < 1 - rng.uniform(0, 0.03)
    reach = {side: (frame.z > floor[side]) & (frame.z < _apex(walls, side, rng)) for side in SIDES}
    lungs = {side: inner & (side_of == side) & ~middle & reach[side] & trunk.body for side in SIDES}
    lungs = {side: largest_piece(lung) & (side != surgery.without) for side, lung in lungs.items()}
    _fill(frame, trunk, tissues, inner & ~lungs[-1] & ~lungs[1], floor, rng)
    hu = trunk.hu
    if surgery.without:  # fluid fills the place of a lung that was removed
        hu[inner & (side_of == surgery.without) & reach[surgery.without]] = rng.uniform(-5, 40)
    hu[heart_fat & trunk.body & (frame.z > -140)] = tissues.fat
    hu[heart] = tissues.blood * rng.uniform(0.6, 1.0) + rng.uniform(0, 15)
    muscle = heart & (frame.noise(30, rng) > 0.6)
    hu[muscle] = rng.uniform(40, 110)
    for vessel in vessels:
        hu[vessel] = tissues.blood * rng.uniform(0.7, 1.2)
    if rng.random() < person.wear:  # calcified walls
        hu[vessels[0] & (frame.noise(8, rng) > 2.2)] = rng.uniform(200, 800)
    for side in SIDES:
        hu[hilum[side]] = np.where(frame.noise(10, rng) > 0, tissues.blood, rng.uniform(-60, 60))[hilum[side]]
    hu[oesophagus] = rng.uniform(15, 60)
    hu[its_air] = rng.uniform(-1000, -700)
    nodes = middle & (frame.noise(9, rng) > 2.2)
    hu[nodes] = rng.uniform(20, 90)
    hu[wall & ~(lungs[-1] | lungs[1])] = rng.uniform(0, 60)
    airways = (trachea | bronchi) & ~(lungs[-1] | lungs[1])
    hu[airways] = rng.uniform(-1010, -950)
    if tubes is not None:
        _tubes(frame, hu, airways, oesophagus, tubes)
    hila = {side: at + np.array([0, 0, surgery.shift_mm]) for side, at in hila.items()}
    return Chest(lungs, airways, middle & ~airways, hila, floor)


def _diaphragm(frame: Frame, side: int, rng: Generator) -> Field:
    """Return the height of the diaphragm: a dome that falls to the wall, deepest at the back."""
    edge = rng.normal(-155, 20)
    rise = np.clip(rng.normal(72 if side < 0 else 62, 16), 25, 120)
    if rng.random() < 0.08:
        rise += rng.uniform(25, 70)  # a paralysed or raised diaphragm
    across = ((frame.x - side * rng.uniform(55, 80)) / rng.uniform(65, 95)) ** 2
    along = ((frame.y + rng.uniform(5, 40)) / rng.uniform(75, 110)) ** 2
    dome = edge + rise * np.exp(-(across**1.5) - along**1.5)
    if rng.random() < 0.3:  # slips of muscle make waves
        dome = dome + rng.uniform(2, 6) * np.sin(frame.x / rng.uniform(6, 14))
    return np.asarray(dome + 5 * frame.noise(40, rng), dtype=np.float32)


def _apex(frame: Frame, side: int, rng: Generator) -> Field:
    """Return the height of the top of a lung: a dome of its own, as each lung has, beside the trachea."""
    top, fall = rng.normal(92, 12), rng.uniform(30, 65)
    across = (frame.x - side * rng.uniform(38, 58)) / rng.uniform(55, 80)
    along = (frame.y - rng.uniform(0, 35)) / rng.uniform(75, 110)
    return np.asarray(top - fall * (across**2 + along**2) + 3 * frame.noise(30, rng), dtype=np.float32)


def _heart(frame: Frame, rng: Generator) -> tuple[Mask, Mask]:
    size = np.clip(rng.normal(1.0, 0.13), 0.7, 1.5)
    centre = (rng.normal(-75, 10), rng.normal(-28, 7), rng.normal(26, 10))
    turned = frame.x + rng.uniform(0.1, 0.6) * (frame.z - centre[0]) * -1 * 0.4 + rng.uniform(0, 0.3) * frame.y
    near = Frame(frame.z, frame.y, np.asarray(turned, np.float32), frame.step_mm)
    radius = near.ellipsoid(centre, (52 * size, 44 * size, 62 * size))
    return radius < 1, radius < 1 + rng.uniform(0.03, 0.35)


def _great_vessels(frame: Frame, trunk: Trunk, rng: Generator) -> list[Mask]:
    """Return aorta (ascending, arch, descending), vena cava, pulmonary trunk and arteries, azygos."""
    wide, high = rng.uniform(11, 19), rng.uniform(28, 50)
    behind = trunk.half_depth_mm * rng.uniform(0.42, 0.62)
    turn = np.linspace(0, np.pi, 22)
    middle_y, reach = (behind - 25) / 2, (behind + 25) / 2
    arch = np.stack(
        [high * np.sin(turn) ** 0.8 - 4, middle_y - reach * np.cos(turn), np.linspace(-8, rng.uniform(14, 26), 22)], 1
    )
    down = np.stack([np.arange(0, -215, -8), np.full(27, behind), np.linspace(arch[-1, 2], rng.uniform(0, 16), 27)], 1)
    up = np.stack([np.arange(-70, 0, 8), np.full(9, -25), np.full(9, -8)], 1)
    aorta = frame.tube(np.concatenate([up, arch, down]), wide)
    cava_at = rng.uniform(-32, -22)
    cava = frame.tube(np.stack([np.arange(-70, 75, 6), np.full(25, -12), np.full(25, cava_at)], 1), rng.uniform(7, 12))
    lower = frame.tube(np.stack([np.arange(-200, -80, 8), np.full(15, 0), np.full(15, -22)], 1), rng.uniform(9, 14))
    trunk_path = np.stack([np.linspace(-40, -12, 8), np.linspace(-35, -8, 8), np.linspace(16, 20, 8)], 1)
    arteries = [np.stack([np.full(9, -14), np.linspace(-10, 0, 9), np.linspace(0, s * 34, 9)], 1) for s in SIDES]
    pulmonary = frame.tube(np.concatenate([trunk_path, *arteries]), rng.uniform(9, 15))
    neck = np.stack([np.arange(high, 140, 7), np.zeros(len(np.arange(high, 140, 7)))], 1)
    branches = [np.column_stack([neck, np.full(len(neck), x)]) for x in (-24, -12, 12, 26)]
    necks = frame.tube(np.concatenate(branches), rng.uniform(4, 8))
    azygos = frame.tube(
        np.stack([np.arange(-160, 10, 8), np.full(22, behind + 8), np.full(22, -8)], 1), rng.uniform(3, 6)
    )
    return [aorta, cava, lower, pulmonary, necks, azygos]


def _wide_aorta(frame: Frame, trunk: Trunk, rng: Generator) -> Mask:
    """Return a descending aorta as of some old people: 26 to 64 mm wide, and left of the spine or even beside it."""
    heights = np.arange(rng.uniform(20, 60), -215, -6)
    bend = rng.uniform(8, 44) * np.exp(-(((heights - rng.uniform(-120, 40)) / rng.uniform(50, 110)) ** 2))
    behind = trunk.half_depth_mm * rng.uniform(0.4, 0.85)
    path = np.stack([heights, np.full(len(heights), behind), rng.uniform(14, 28) + bend], 1)
    return frame.tube(path, rng.uniform(13, 32)) & (trunk.cage < 1) & ~trunk.spine


def _high_arch(frame: Frame, trunk: Trunk, rng: Generator) -> tuple[Mask, Mask]:
    """Return an aorta whose arch has its middle 25 to 80 mm above the carina, and its end 18 to 48 mm to the left.

    Its back lies beside the spine, where the arch of many old people pushes the left lung aside. The descending part
    comes to the middle slowly and may bend; the arteries to the arms follow the border of the lungs. The second mask is
    where the left lung reaches towards the middle, before and below the arch.
    """
    radius, top = rng.uniform(11, 24), rng.uniform(25, 80)
    behind, left = trunk.half_depth_mm * rng.uniform(0.4, 0.85), rng.uniform(18, 48)
    turn, share = np.linspace(0, np.pi, 30), np.linspace(0, 1, 30)
    front, start = rng.uniform(-35, -10), rng.uniform(-22, -6)
    along = (front + behind) / 2 - (behind - front) / 2 * np.cos(turn)
    across = start + (left - start) * share ** rng.uniform(0.6, 1.5)
    arch = np.stack([top * np.sin(turn) ** rng.uniform(0.5, 1.0), along, across], 1)
    down = np.arange(0, -215, -6)
    middle = rng.uniform(0, 20)
    bend = rng.uniform(0, 25) * np.exp(-(((down - rng.uniform(-140, -40)) / rng.uniform(40, 90)) ** 2))
    to_left = middle + (left - middle) * np.exp(down / rng.uniform(40, 160)) + bend
    descending = np.stack([down, np.full(len(down), behind), to_left], 1)
    aorta = frame.tube(arch, radius) | frame.tube(descending, radius * rng.uniform(0.8, 1.0))
    neck = np.arange(top, 140, 6)
    for x in (left * rng.uniform(0.5, 0.9), -rng.uniform(14, 36)):
        lean = rng.uniform(-0.1, 0.15) * (neck - top) * np.sign(x)
        branch = np.stack([neck, np.full(len(neck), rng.uniform(-5, 0.6 * behind)), x + lean], 1)
        aorta |= frame.tube(branch, rng.uniform(4, 8))
    before = (frame.x > rng.uniform(0, 20) + rng.uniform(0, 0.4) * frame.y) & (frame.z < top)
    return aorta & (trunk.cage < 1) & ~trunk.spine, before


def _large_airways(frame: Frame, hila: dict[int, Path], rng: Generator) -> tuple[Mask, Mask, Mask]:
    """Return the lumen of trachea and main bronchi, and a wall around both."""
    radius = rng.uniform(6.5, 11)
    heights = np.arange(0, 280, 4.0)  # to the top of every scan
    lean = rng.uniform(-8, 8)
    path = np.stack([heights, 12 - rng.uniform(0.05, 0.3) * heights, lean * heights / 100], 1)
    trachea = frame.tube(path, radius)
    share = np.linspace(0, 1.25, 14)[:, None]
    start = np.array([2.0, 13.0, 0.0])
    tubes = [start + share * (hila[side] - start) for side in SIDES]
    radii = np.linspace(radius * 0.8, radius * 0.55, 14)
    bronchi = frame.tube(tubes[0], radii) | frame.tube(tubes[1], radii * 0.9)
    thick = rng.uniform(1.5, 3)
    wall = frame.tube(path, radius + thick) | frame.tube(tubes[0], radii + thick) | frame.tube(tubes[1], radii + thick)
    return trachea, bronchi, wall & ~trachea & ~bronchi


def _tubes(frame: Frame, hu: Field, airways: Mask, oesophagus: Mask, rng: Generator) -> None:
    """Put a tube into the trachea, some centimetres above the carina, and one through the oesophagus into the stomach.

    On voxels as wide as its wall, a tube of plastic and the air in it have one density.
    """
    tube = airways & (frame.z > rng.uniform(10, 60))
    depth_mm = ndimage.distance_transform_edt(tube, sampling=frame.step_mm)
    hu[tube & (depth_mm < rng.uniform(4, 9))] = rng.uniform(-850, 100)
    hu[tube & (frame.noise(12, rng) > rng.uniform(0.5, 2))] = rng.uniform(-600, 60)  # secretions
    if rng.random() < 0.7:
        middle = ndimage.distance_transform_edt(oesophagus, sampling=frame.step_mm) > rng.uniform(3, 6)
        hu[middle] = rng.uniform(-400, 1200)


def _oesophagus(frame: Frame, trunk: Trunk, rng: Generator) -> tuple[Mask, Mask]:
    heights = np.arange(-180, 150, 6.0)
    behind = trunk.half_depth_mm * rng.uniform(0.3, 0.45)
    path = np.stack([heights, np.full(len(heights), behind), 4 + 10 * np.exp(-(((heights + 150) / 60) ** 2))], 1)
    radius = rng.uniform(6, 11)
    whole = frame.tube(path, radius)
    if rng.random() < 0.08:  # a hiatal hernia
        whole |= frame.ellipsoid((rng.uniform(-130, -95), behind - 5, 5), (28, 24, rng.uniform(18, 34))) < 1
    air = np.zeros(frame.shape, bool)
    if rng.random() < 0.6:
        low = rng.uniform(-120, 80)
        some = path[(heights > low) & (heights < low + rng.uniform(10, 90))]
        air = frame.tube(some, rng.uniform(2, radius)) if len(some) else air
    if rng.random() < 0.15:
        pocket = frame.ellipsoid((rng.uniform(60, 95), 25, rng.uniform(-20, -8)), (7, 6, 6)) < 1  # a tracheal cyst
        air, whole = air | pocket, whole | pocket
    return whole, air & whole


def _hilum(frame: Frame, at: Path, rng: Generator) -> Mask:
    """Return vessels, nodes and fat where the lung is attached."""
    radii = (rng.uniform(16, 30), rng.uniform(10, 19), rng.uniform(9, 20))
    lobes = frame.ellipsoid((at[0], at[1], at[2]), radii) + 0.18 * frame.noise(12, rng)
    return np.asarray(lobes < 1)


def _turn_of_septum(frame: Frame, rng: Generator) -> Field:
    """Return the x where one lung ends and the other begins: in front the lungs meet left of the middle at times."""
    return np.asarray(rng.normal(0, 5) + rng.uniform(-8, 12) * np.clip(-frame.y / 80, 0, 1), np.float32)


def _septum(frame: Frame, rng: Generator) -> Mask:
    """Return the sheet between the lungs: broad behind and above, thin in front."""
    thin, wide = rng.uniform(2.5, 9), rng.uniform(14, 26)
    front = np.clip((-frame.y - rng.uniform(20, 45)) / 25, 0, 1)
    upper = 12 * np.clip(frame.z / 60, 0, 1)
    half = thin * front + (wide + upper) * (1 - front)
    behind = np.clip((frame.y - 35) / 20, 0, 1)  # behind the heart the lungs reach far towards the spine
    half = half * (1 - behind * rng.uniform(0.2, 0.6))
    return np.asarray(np.abs(frame.x - 3) < half + 2 * frame.noise(25, rng))


def _beside_spine(frame: Frame, trunk: Trunk) -> Mask:
    """Return the vertebrae with a layer of soft tissue."""
    return ndimage.binary_dilation(trunk.spine, iterations=max(1, round(3 / frame.step_mm)))


def _fill(frame: Frame, trunk: Trunk, tissues: Tissues, rest: Mask, floor: dict[int, Field], rng: Generator) -> None:
    """Fill what is inside the cage and not lung with fat and soft tissue; the abdomen comes later."""
    fat = frame.noise(14, rng) > rng.uniform(-1.5, 1.0)
    not_bone = rest & ~trunk.spine
    trunk.hu[not_bone] = np.where(fat, tissues.fat, tissues.muscle)[not_bone]
    for side in SIDES:
        sheet = rest & (np.abs(frame.z - floor[side]) < rng.uniform(2, 5)) & (side * frame.x > 0)
        trunk.hu[sheet & ~trunk.spine] = tissues.muscle
