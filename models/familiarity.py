"""Measures the distance of a scan from the training scans of a model, and sets a limit for scoring.

Both are learnt only from aggregates of the sites: means and variances of the appearance features of training patients,
then mean and standard deviation of the logarithm of the distance over validation patients.

The features describe the network's input, not its activations. In tests, the last features of the backbone, trained for
one disease, did not distinguish noise and wrong HU from other scans.
"""

from collections.abc import Iterator, Sequence
from typing import Annotated, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, model_validator
from scipy.special import nctdtrit, ndtri

INSIDE = 0.99  # share of a site's good scans that should be within its limit
SURE = 0.8  # confidence of that share; a site with few patients gets a larger limit
LEAST_VARIANCE = 0.02  # share of the median variance, added to each; features with little variance must not dominate
THIN_USUAL = 3.0  # standard deviations beyond which features of cloth or foam count linearly instead of squared

# Bounds of bins of the network's input: -1 is the bottom of the window (air), 1 its top; narrow for common values.
_IN_LUNGS = (-1.01, -0.98, -0.9, -0.85, -0.8, -0.75, -0.7, -0.6, -0.4, -0.1, 0.2, 0.6, 0.9, 1.01)
_OUTSIDE = (-1.01, -0.9, -0.5, 0.0, 0.5, 0.65, 0.75, 0.85, 0.98, 1.01)
_PROFILE = 4  # parts of each axis in which the share of lung is measured
_PARTS = (
    len(_IN_LUNGS) - 1,
    1,
    2,
    6,
    3,
    3,
    3,
    3 * _PROFILE,
    2**3,
)  # in the order of `appearance_features`
APPEARANCE_SIZE = sum(_PARTS)
_THIN = np.repeat([part in (2, 5) for part in range(len(_PARTS))], _PARTS)  # outside the lungs: cloth or foam, steps

Appearance = NDArray[np.float32]
Scan = NDArray[np.float32]
_Finite = Annotated[float, Field(allow_inf_nan=False)]


class Moments(NamedTuple):
    """Mean and variance of each feature, and the number of patients of a site."""

    mean: NDArray[np.float32]
    variance: NDArray[np.float32]
    patients: int


class Distances(NamedTuple):
    """Mean and standard deviation of the logarithms of distance, and the number of validation patients of a site."""

    mean: float
    sd: float
    patients: int


class Familiarity(BaseModel):
    """Mean and variance of the appearance features over all sites, and the largest distance that may be scored.

    `sites`: number of sites that reported distances.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    mean: tuple[_Finite, ...]
    variance: tuple[Annotated[_Finite, Field(ge=0)], ...]
    limit: Annotated[_Finite, Field(gt=0)]
    sites: int

    @model_validator(mode="after")
    def has_all_features(self) -> Self:
        if not len(self.mean) == len(self.variance) == APPEARANCE_SIZE:
            raise ValueError(f"mean and variance must have {APPEARANCE_SIZE} numbers each")
        return self

    def distance(self, appearance: Appearance) -> float:
        """Return the distance of one scan's features from training (`log_distances`); about 1 for a typical scan."""
        return float(np.exp(log_distances(appearance[None], np.array(self.mean), np.array(self.variance))[0]))

    def is_familiar(self, distance: float) -> bool:
        """Whether a scan with this distance may be scored; an unknown distance (NaN) may not."""
        return distance <= self.limit


# --- appearance features ----------------------------------------------------------------------------------


def appearance_features(scan: Scan) -> Appearance:
    """Compute the appearance features, shape (APPEARANCE_SIZE,), of the network's input: (2, slices, rows, columns).

    The features are: square roots of the shares of voxels in bins, and of the mean step between neighbours, both inside
    and outside the lungs; the correlation of neighbours in the lungs; the share of lung in parts of each axis; the
    median of each eighth of the lungs.
    """
    window, mask = scan[0], scan[1] > 0.5
    inside, outside = window[mask], window[~mask]
    features = [
        *np.sqrt(_shares(inside, _IN_LUNGS)),
        *np.sqrt(_shares(outside, _OUTSIDE)),
        *(np.sqrt(_mean(np.abs(one - next_one))) for one, next_one in _neighbours(window, mask)),
        *(np.sqrt(_mean(np.abs(one - next_one))) for one, next_one in _neighbours(window, ~mask)),
        *_likeness(window, mask),
        *_profiles(mask),
        *(_median(part[lungs]) for part, lungs in zip(_eighths(window), _eighths(mask), strict=True)),
    ]
    return np.array(features, dtype=np.float32)


def _shares(values: Scan, bounds: Sequence[float]) -> NDArray[np.float64]:
    return np.histogram(values, bins=bounds)[0] / max(1, values.size)


def _mean(values: Scan) -> float:
    return float(values.mean(dtype=np.float64)) if values.size else 1.0


def _median(values: Scan) -> float:
    return float(np.median(values)) if values.size else 1.0


def _neighbours(window: Scan, where: NDArray[np.bool_]) -> Iterator[tuple[Scan, Scan]]:
    """Yield for each axis the neighbouring voxels that are both in `where`, as two arrays of equal length."""
    for axis in range(3):
        first, second = (tuple([slice(None)] * axis + [part]) for part in (slice(None, -1), slice(1, None)))
        both = where[first] & where[second]
        yield window[first][both], window[second][both]


def _likeness(window: Scan, mask: NDArray[np.bool_]) -> list[float]:
    """Return the correlation of neighbours in the lungs, along each axis."""
    inside = window[mask].astype(np.float64)
    middle, spread = (inside.mean(), inside.var() + 1e-4) if inside.size else (0.0, 1.0)
    return [
        float(np.mean((one - middle) * (next_one - middle)) / spread) if one.size else 0.0
        for one, next_one in _neighbours(window, mask)
    ]


def _profiles(mask: NDArray[np.bool_]) -> list[float]:
    along = [mask.mean(axis=tuple(other for other in range(3) if other != axis)) for axis in range(3)]
    return [float(part.mean()) for profile in along for part in np.array_split(profile, _PROFILE)]


def _eighths(values: NDArray) -> list[NDArray]:
    parts = [values]
    for axis in range(3):
        parts = [half for part in parts for half in np.array_split(part, 2, axis=axis)]
    return parts


# --- the familiarity model, from the sites' statistics ------------------------------------------------------


def log_distances(
    appearance: Appearance, mean: NDArray[np.floating], variance: NDArray[np.floating]
) -> NDArray[np.float64]:
    """Return the logarithm of each patient's distance, shape (patients,).

    `appearance`: the appearance features, shape (patients, APPEARANCE_SIZE).

    The distance is the root of the mean squared deviation from `mean`, in standard deviations: the Mahalanobis distance
    with a diagonal covariance, because sites do not release correlations. For low densities and steps outside the
    lungs, deviations beyond THIN_USUAL count linearly (Huber, Robust Estimation of a Location Parameter, 1964):
    clothes, a mattress and voxels between skin and air say little about a scan and must not dominate.
    """
    wide = np.asarray(variance, dtype=np.float64)
    away = np.abs(np.asarray(appearance, dtype=np.float64) - mean) / np.sqrt(wide + LEAST_VARIANCE * np.median(wide))
    squares = np.where(_THIN & (away > THIN_USUAL), 2 * THIN_USUAL * away - THIN_USUAL**2, away**2)
    found: NDArray[np.float64] = 0.5 * np.log(np.maximum(squares.mean(axis=1), np.finfo(np.float64).tiny))
    return found


def pool_moments(sites: Sequence[Moments], *, robust: bool) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return mean and variance over the patients of all sites, including the variance between sites; float32.

    `robust`: use medians over sites instead of means, so that no single site can dominate.
    """
    means = np.array([site.mean for site in sites], dtype=np.float64)
    variances = np.array([site.variance for site in sites], dtype=np.float64)
    patients = [site.patients for site in sites]

    def over_sites(values: NDArray[np.float64]) -> NDArray[np.float64]:
        found: NDArray[np.float64]
        found = np.median(values, axis=0) if robust else np.average(values, axis=0, weights=patients)
        return found

    mean = over_sites(means)
    return mean.astype(np.float32), over_sites(variances + (means - mean) ** 2).astype(np.float32)


def limit(sites: Sequence[Distances], *, robust: bool) -> float:
    """Return the distance within which the good scans of every site are.

    For each site it is the upper tolerance limit of a normal distribution (Hahn & Meeker, Statistical Intervals, 1991):
    with confidence SURE, a share INSIDE of its patients is below. The largest limit is used; with `robust` the median,
    so that no single site can make every scan familiar.
    """
    limits = [site.mean + _factor(site.patients) * site.sd for site in sites]
    return float(np.exp(min(20.0, np.median(limits) if robust else max(limits))))


def _factor(patients: int) -> float:
    """Return the tolerance factor in standard deviations, for at least two patients."""
    root = patients**0.5
    return float(nctdtrit(patients - 1, ndtri(INSIDE) * root, SURE) / root)
