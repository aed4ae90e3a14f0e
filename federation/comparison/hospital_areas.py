"""The AUROCs of a study's hospitals, and how far apart chance alone puts them.

The variance of each AUROC is the one that it has if all hospitals have the same AUROC. The hospital's own variance
depends on its AUROC: by chance it is almost zero where the AUROC is almost 1, as in small hospitals of a good model.
Such hospitals would have almost all weight in a mean, and would look different (Hoaglin, Stat Med 2016; 35:485).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm

from federation.comparison.class_sizes import about_sizes
from federation.runs.listing import interval_of
from pipeline.evaluation.auroc_variance import hanley_mcneil
from pipeline.evaluation.combining import Interval

Z = float(norm.ppf(0.975))
_LEAST = 1e-12  # of a variance

Figures = Mapping[str, float]


class Combined(NamedTuple):
    """The weighted mean of the AUROCs, Cochran's Q of their differences, and the weights (hospitals,)."""

    mean: float
    q: float
    weights: NDArray[np.float64]


@dataclass(frozen=True)
class HospitalAreas:
    """The AUROC with its interval by hospital, and the numbers of its patients of each class (hospitals,)."""

    by_site: Mapping[str, Interval]
    positive: NDArray[np.float64]
    negative: NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.by_site)

    @cached_property
    def values(self) -> NDArray[np.float64]:
        return np.array([each.value for each in self.by_site.values()])

    def variances(self, common: float) -> NDArray[np.float64]:
        """Return the variance of each hospital's AUROC if the AUROC of all is `common`.

        All hospitals' intervals together tell it: it is proportional to 1 / positives + 1 / negatives of a hospital. It
        is that of Hanley & McNeil if this is larger, as the intervals of few patients may all be short.
        """
        by_area = hanley_mcneil(common, self.positive, self.negative)
        return np.maximum(np.maximum(self._scale * self._parts, by_area), _LEAST)

    def combined(self, between: float = 0.0) -> Combined:
        """Return the mean, weighted by the inverse of the variances; `between`: the variance between hospitals."""
        common = float(np.average(self.values, weights=1 / self._parts))
        weights = 1 / (self.variances(common) + between)
        mean = float(np.average(self.values, weights=weights))
        return Combined(mean, float(weights @ (self.values - mean) ** 2), weights)

    @cached_property
    def _parts(self) -> NDArray[np.float64]:
        return 1 / self.positive + 1 / self.negative

    @cached_property
    def _scale(self) -> float:
        widths = np.array([each.high - each.low for each in self.by_site.values()])
        return float(((widths / (2 * Z)) ** 2).sum() / self._parts.sum())


def areas_of(sites: Mapping[str, Figures], label: str) -> HospitalAreas:
    """Return the hospitals' AUROCs of a label, without hospitals that gave no interval.

    Parameters
    ----------
    sites : mapping of str to mapping of str to float
        Figures by site, as a model's `figures` in `read_results` holds them.
    label : str
        "pcr_positive" or "severe".
    """
    by_site = {
        site: found for site, figures in sorted(sites.items()) if (found := interval_of(figures, f"auroc_{label}"))
    }
    sizes = [about_sizes(sites[site], label) for site in by_site]
    positive, negative = (np.array([size[place] for size in sizes], dtype=float) for place in (0, 1))
    return HospitalAreas(by_site, positive, negative)
