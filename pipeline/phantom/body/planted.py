"""Pneumonia that fills a wanted share of the lungs, so that a synthetic patient's severity follows from it exactly.

Foci are drawn where their cause puts them. Each voxel then has a normalised distance from the nearest focus, and the
distance up to which lung is ill is chosen so that the wanted share is ill. Covid-19: several foci at the pleura, mostly
of both lungs, at the back and the base, at times joined to a band (Salehi et al., AJR 2020; 215:87-93). Other
pneumonia: one to three foci, mostly in one lung.
"""

from typing import Literal

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from pipeline.phantom.body.disease import Lung
from pipeline.phantom.body.frame import SIDES, Field, Frame

Kind = Literal["covid", "other"]
FAR = 3.0  # distance that no voxel is beyond, in radii of a focus
MOST_FOCI = 400
REACH_MM = 60.0  # bending moves a voxel by less


def plant(lung: Lung, frame: Frame, kind: Kind, rng: Generator, *, load: float, consolidated: float) -> None:
    """Make `load` of the lungs ill, in place of other opacities there; `consolidated` of it is solid.

    Both are shares of volume: a voxel that is half ill counts half.
    """
    both = lung.both
    distance = _distances(lung, frame, kind, rng, load=load)[both]
    soft = rng.uniform(0.1, 0.5)
    ill = _filled(distance, soft, load)
    # The core of a focus is solid, with an edge of its own.
    core = distance + rng.uniform(0.05, 0.3) * frame.noise(10, rng)[both]
    solid = _filled(core, 0.2, consolidated * load, within=ill)
    for field, share in ((lung.ground_glass, ill - solid), (lung.consolidation, solid)):
        field[both] = share


def _filled(distance: Field, soft: float, wanted: float, within: Field | None = None) -> Field:
    """Return each voxel's share below a distance, which is chosen so that `wanted` is filled on average."""
    low, high = float(distance.min()), float(distance.max()) + soft
    share = np.zeros_like(distance)
    for _ in range(30):
        middle = (low + high) / 2
        share = np.clip((middle - distance) / soft, 0, 1)
        if within is not None:
            share = np.minimum(share, within)
        low, high = (middle, high) if share.mean() < wanted else (low, middle)
    return share


def _distances(lung: Lung, frame: Frame, kind: Kind, rng: Generator, *, load: float) -> Field:
    """Return the distance from the nearest focus in radii of that focus, with rough edges."""
    both = lung.both
    weight = _covid_places(lung, frame, rng) if kind == "covid" else _other_places(lung, rng)
    places = np.argwhere(both)
    chances = weight[both].astype(np.float64)
    sizes_mm = (12.0, 38.0) if kind == "covid" else (25.0, 75.0)
    usual_ml = 65.0 / 2  # of a focus at the pleura, half of which is outside the lung
    count = int(load * len(places) * frame.step_mm**3 / 1000 / usual_ml * rng.uniform(0.5, 1.5)) + 2
    count = min(count, MOST_FOCI // 4) if kind == "covid" else int(rng.integers(1, 4))
    distance = np.full(frame.shape, FAR, np.float32)
    drawn = 0
    # More foci, until the wanted share is not far from them.
    while drawn == 0 or (drawn < MOST_FOCI and np.mean(distance[both] < FAR / 2) < load):
        for at in places[rng.choice(len(places), count, p=chances / chances.sum())]:
            _add_focus(distance, frame, at, rng.uniform(*sizes_mm) * rng.uniform(0.6, 1.4, 3))
        drawn += count
    if rng.random() < (0.25 if kind == "covid" else 0.1):
        _add_band(distance, lung, frame, rng)
    return distance + rng.uniform(0.1, 0.35) * frame.noise(rng.uniform(6, 14), rng)


def _covid_places(lung: Lung, frame: Frame, rng: Generator) -> Field:
    """Return the weight of each voxel as the centre of a focus."""
    both = lung.both
    y, z = frame.y - frame.y[both].mean(), frame.z - frame.z[both].mean()
    weight = np.exp(-lung.depth_mm / rng.uniform(6, 16))
    weight = weight * (1 + np.clip(y / 60, -0.8, 2)) * (1 + np.clip(-z / 80, -0.6, 1.5) * rng.uniform(0, 1.2))
    sides = np.ones(frame.shape, np.float32)
    sides[lung.lungs[-1]] = rng.uniform(0.3, 1)
    sides[lung.lungs[1]] = rng.uniform(0.3, 1)
    outer = np.clip(np.abs(frame.x) / 70, 0.15, 1) ** 2  # the chest wall, not the mediastinum
    return np.asarray(np.clip(weight * sides * outer, 1e-9, None), np.float32)


def _other_places(lung: Lung, rng: Generator) -> Field:
    mine = lung.lungs[int(rng.choice(SIDES))] if rng.random() < 0.8 else lung.both
    if not mine.any():
        mine = lung.both
    return np.asarray(mine * np.clip(lung.depth_mm - 4, 0.1, None), np.float32)


def _add_focus(distance: Field, frame: Frame, at: NDArray[np.int64], radii_mm: NDArray[np.float64]) -> None:
    """Lower the distances around the voxel `at`."""
    reach = int(np.ceil((FAR * radii_mm.max() + REACH_MM) / frame.step_mm))
    box = tuple(slice(max(0, c - reach), c + reach + 1) for c in at)
    centre = (float(frame.z[tuple(at)]), float(frame.y[tuple(at)]), float(frame.x[tuple(at)]))
    near = Frame(frame.z[box], frame.y[box], frame.x[box], frame.step_mm)
    radius = near.ellipsoid(centre, (radii_mm[0], radii_mm[1], radii_mm[2]))
    np.minimum(distance[box], radius, out=distance[box])


def _add_band(distance: Field, lung: Lung, frame: Frame, rng: Generator) -> None:
    """Join foci along the pleura, mostly at the back."""
    thick_mm = np.clip(rng.uniform(5, 22) * (1 + 0.4 * frame.noise(20, rng)), 2, None)
    where = frame.noise(40, rng) + frame.y / 50 - rng.uniform(-0.3, 1.2)
    band = 0.4 + 0.6 * lung.depth_mm / thick_mm + 2 * np.clip(-where, 0, 1)  # fades out where it ends
    np.minimum(distance, band.astype(np.float32), out=distance)
