"""How far a scan lies from those that a model was trained on: a distance of how it looks, and a limit to it.

Both are learnt from sites' aggregates alone: means and variances of the looks of training patients, then mean and
standard deviation of the logarithm of distance over validation patients.

What a scan looks like is measured on what the network sees, and not in the network: in trials the last features of the
backbone, which have learnt to tell one illness and little else, took noise and wrong HU for any other scan.
"""

from collections.abc import Iterator, Sequence
from typing import Annotated, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, model_validator
from scipy.special import nctdtrit, ndtri

INSIDE = 0.99  # share of a site's good scans that its limit shall leave inside
SURE = 0.8  # how surely: a site with few patients has a limit further out
LEAST_VARIANCE = 0.02  # of the middle one, added to each: what hardly varied in training would else decide alone
THIN_USUAL = 3.0  # standard deviations beyond which what may be cloth or foam counts by a line, no more by a square

# Bounds of bins of what the network sees: -1 is the bottom of the window (air), 1 its top; narrow where much lies.
_IN_LUNGS = (-1.01, -0.98, -0.9, -0.85, -0.8, -0.75, -0.7, -0.6, -0.4, -0.1, 0.2, 0.6, 0.9, 1.01)
_OUTSIDE = (-1.01, -0.9, -0.5, 0.0, 0.5, 0.65, 0.75, 0.85, 0.98, 1.01)
_PROFILE = 4  # parts of each axis in which the lungs' share is measured
_PARTS = (len(_IN_LUNGS) - 1, 1, 2, 6, 3, 3, 3, 3 * _PROFILE, 2**3)  # how many numbers, in the order of `look`
LOOKS = sum(_PARTS)
_THIN = np.repeat([part in (2, 5) for part in range(len(_PARTS))], _PARTS)  # outside: thin as cloth or foam, and steps

Looks = NDArray[np.float32]
Scan = NDArray[np.float32]
_Finite = Annotated[float, Field(allow_inf_nan=False)]


class Moments(NamedTuple):
    """Mean and variance of each of some numbers, both of one length, over so many patients of a site."""

    mean: NDArray[np.float32]
    variance: NDArray[np.float32]
    patients: int


class Distances(NamedTuple):
    """Mean and standard deviation of the logarithms of distance of so many validation patients of a site."""

    mean: float
    sd: float
    patients: int


class Familiarity(BaseModel):
    """Mean and variance of the looks over all sites, and the distance beyond which a scan is unlike those of any site.

    `sites`: how many told their distances.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    mean: tuple[_Finite, ...]
    variance: tuple[Annotated[_Finite, Field(ge=0)], ...]
    limit: Annotated[_Finite, Field(gt=0)]
    sites: int

    @model_validator(mode="after")
    def is_of_these_looks(self) -> Self:
        if not len(self.mean) == len(self.variance) == LOOKS:
            raise ValueError(f"what is familiar is told by {LOOKS} numbers")
        return self

    def distance(self, looks: Looks) -> float:
        """Of one scan's `look`, as `log_distances` says; about 1 for a scan like those of training."""
        return float(np.exp(log_distances(looks[None], np.array(self.mean), np.array(self.variance))[0]))

    def is_familiar(self, distance: float) -> bool:
        """Whether a scan of this distance may be scored. One that cannot be told (NaN) may not."""
        return distance <= self.limit


# --- how a scan looks -------------------------------------------------------------------------------------


def look(scan: Scan) -> Looks:
    """How a scan looks, shape (LOOKS,), from what the network sees: (2, slices, rows, columns), lung window and mask.

    Square roots of the shares of voxels in bins, in the lungs and outside them, and of the mean step from voxel to
    voxel there; how alike neighbours in the lungs are; the lungs' share in parts of each axis; the median of each
    eighth of the lungs.
    """
    window, mask = scan[0], scan[1] > 0.5
    inside, outside = window[mask], window[~mask]
    looks = [
        *np.sqrt(_shares(inside, _IN_LUNGS)),
        *np.sqrt(_shares(outside, _OUTSIDE)),
        *(np.sqrt(_mean(np.abs(one - next_one))) for one, next_one in _neighbours(window, mask)),
        *(np.sqrt(_mean(np.abs(one - next_one))) for one, next_one in _neighbours(window, ~mask)),
        *_likeness(window, mask),
        *_profiles(mask),
        *(_median(part[lungs]) for part, lungs in zip(_eighths(window), _eighths(mask), strict=True)),
    ]
    return np.array(looks, dtype=np.float32)


def _shares(values: Scan, bounds: Sequence[float]) -> NDArray[np.float64]:
    return np.histogram(values, bins=bounds)[0] / max(1, values.size)


def _mean(values: Scan) -> float:
    return float(values.mean(dtype=np.float64)) if values.size else 1.0


def _median(values: Scan) -> float:
    return float(np.median(values)) if values.size else 1.0


def _neighbours(window: Scan, where: NDArray[np.bool_]) -> Iterator[tuple[Scan, Scan]]:
    """Of each axis the pairs of voxels next to each other that both lie `where`, as two arrays of one length."""
    for axis in range(3):
        first, second = (tuple([slice(None)] * axis + [part]) for part in (slice(None, -1), slice(1, None)))
        both = where[first] & where[second]
        yield window[first][both], window[second][both]


def _likeness(window: Scan, mask: NDArray[np.bool_]) -> list[float]:
    """The correlation of neighbours in the lungs, along each axis."""
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


# --- what is familiar, from what sites tell ---------------------------------------------------------------


def log_distances(looks: Looks, mean: NDArray[np.floating], variance: NDArray[np.floating]) -> NDArray[np.float64]:
    """Logarithm of each patient's distance, shape (patients,), from `looks` of shape (patients, LOOKS).

    The distance is the root of the mean squared deviation from `mean`, in standard deviations: Mahalanobis' with a
    diagonal covariance, for correlations are no aggregate that sites let out. Around the lungs, of what is thin and of
    steps, a line takes the square's place beyond THIN_USUAL (Huber, Robust Estimation of a Location Parameter, 1964):
    clothes, a mattress and the voxels that skin shares with air tell little of a scan, and shall not decide alone.
    """
    wide = np.asarray(variance, dtype=np.float64)
    away = np.abs(np.asarray(looks, dtype=np.float64) - mean) / np.sqrt(wide + LEAST_VARIANCE * np.median(wide))
    squares = np.where(_THIN & (away > THIN_USUAL), 2 * THIN_USUAL * away - THIN_USUAL**2, away**2)
    found: NDArray[np.float64] = 0.5 * np.log(np.maximum(squares.mean(axis=1), np.finfo(np.float64).tiny))
    return found


def pool_moments(sites: Sequence[Moments], *, robust: bool) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Mean and variance over all sites' patients, what lies between sites included; float32.

    `robust`: medians over sites in place of means, so that no single one can carry them away.
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
    """The distance within which the good scans of every site lie.

    Of each site the upper tolerance limit of a normal distribution (Hahn & Meeker, Statistical Intervals, 1991): with
    a chance of SURE, INSIDE of its patients are below. Of these the largest; with `robust` the median, so that no
    single site can make every scan familiar.
    """
    limits = [site.mean + _factor(site.patients) * site.sd for site in sites]
    return float(np.exp(min(20.0, np.median(limits) if robust else max(limits))))


def _factor(patients: int) -> float:
    """How many standard deviations above the mean that is; of at least two patients."""
    root = patients**0.5
    return float(nctdtrit(patients - 1, ndtri(INSIDE) * root, SURE) / root)
