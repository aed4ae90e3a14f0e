"""Whether hospitals differ in their AUROC by more than chance, from the intervals and class sizes that they released.

The variance of each AUROC is the one that it has if all hospitals have the same AUROC. Cochran's Q with each hospital's
own variance calls far too many equal hospitals different, because that variance depends on the hospital's AUROC: by
chance it is almost zero where the AUROC is almost 1, as in small hospitals of a good model (Hoaglin, Stat Med 2016;
35:485). False alarms and power are measured in benchmarks/results/coverage.md.
"""

import math
from collections.abc import Mapping

from scipy.stats import chi2, norm

from federation.comparison.class_sizes import ClassSizes, about_sizes
from federation.runs.figures_from_counts import hanley_mcneil
from pipeline.evaluation.combining import Interval

_Z = float(norm.ppf(0.975))
_LEAST = 1e-12  # of a variance

Figures = Mapping[str, float]


def chance_of_difference(sites: Mapping[str, Figures], label: str) -> float:
    """Return how likely hospitals with the same AUROC differ as much; 1 with fewer than two that gave an interval.

    Parameters
    ----------
    sites : mapping of str to mapping of str to float
        Figures by site, as a model's `figures` in `read_results` holds them.
    label : str
        "pcr_positive" or "severe".
    """
    given = [(found, about_sizes(figures, label)) for figures in sites.values() if (found := _interval(figures, label))]
    if len(given) < 2:
        return 1.0
    variances = _variances(given)
    mean = _mean(given, variances)
    q = math.fsum((found.value - mean) ** 2 / each for (found, _), each in zip(given, variances, strict=True))
    return float(chi2.sf(q, len(given) - 1))


def _interval(figures: Figures, label: str) -> Interval | None:
    ends = [figures.get(f"auroc_{label}{end}", math.nan) for end in ("", "_low", "_high")]
    return Interval(*ends) if all(map(math.isfinite, ends)) else None


def _variances(given: list[tuple[Interval, ClassSizes]]) -> list[float]:
    """Return the variance of each hospital's AUROC if all have the same.

    All hospitals' intervals together tell it: it is proportional to 1 / positives + 1 / negatives of a hospital. It is
    that of Hanley & McNeil for the common AUROC if this is larger, as the intervals of few patients may all be short.
    """
    parts = [1 / sizes.positive + 1 / sizes.negative for _, sizes in given]
    scale = math.fsum(((found.high - found.low) / (2 * _Z)) ** 2 for found, _ in given) / math.fsum(parts)
    common = _mean(given, parts)
    return [
        max(scale * part, hanley_mcneil(common, *sizes), _LEAST) for part, (_, sizes) in zip(parts, given, strict=True)
    ]


def _mean(given: list[tuple[Interval, ClassSizes]], variances: list[float]) -> float:
    total = math.fsum(1 / each for each in variances)
    return math.fsum(found.value / each for (found, _), each in zip(given, variances, strict=True)) / total
