"""ROC curve, AUROC and calibration over all sites' test patients, from the histograms that the sites release.

Only this value is called the AUROC of the federation's patients. A mean of the sites' AUROCs (`hospital_mean`) is a
different number, because it never compares patients of different sites.

The order of patients of one site is known from that site's own AUROC. The order of patients of different sites is known
only as far as their cells differ. The interval covers every order that is possible; no distribution is assumed for it.
With few patients a site merges most of its bins, and almost any order is possible: then there is no pooled AUROC.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.special import logit
from scipy.stats import norm

from federation.protocol.metric_allowlist import BINS, EXAMPLES
from pipeline.evaluation.calibration import Reliability
from pipeline.evaluation.discrimination import Estimate, logit_interval

_EDGES = logit(np.arange(BINS + 1) / BINS)  # edges of the bins, as logits
_FITTED = 3  # parameters of the model: two means and a width
MOST_UNKNOWN = 0.15  # the AUROC is reported if the unknown order changes it by at most this
_ROUNDED = 0.005  # sites report AUROCs in hundredths
_Z = float(norm.ppf(0.975))
_ENDS = (1e-4, 1 - 1e-4)  # AUROCs nearer to 0 or 1 have no useful logit
_LEAST = 1e-12  # lower bound of a probability, so that no bin is impossible
Counts = NDArray[np.float64]  # numbers of patients by bin of the calibrated probability, shape (BINS,)


@dataclass(frozen=True)
class Pooled:
    """The patients of one label at all sites that released histograms.

    `share`: their share of the test patients of all sites (`num-examples`); patients without the label are in no
    histogram. `possible`: the smallest and the largest AUROC that the counts and the sites' own AUROCs allow. `auroc`:
    a value between them, with a 95 % interval that covers sampling at both ends of `possible`; NaN where these are
    further apart than MOST_UNKNOWN. `curve`: points from (0, 0) to (1, 1) of false-positive rate and sensitivity, shape
    (BINS + 1, 2), by the distribution that `_spread` fits; empty where `auroc` is NaN. `reliability`: over
    BINS / 2 bins.
    """

    sites: tuple[str, ...]
    positive: int
    negative: int
    share: float
    auroc: Estimate
    possible: tuple[float, float]
    curve: NDArray[np.float64]
    reliability: Reliability


@dataclass(frozen=True)
class _Cell:
    """The number of patients in the bins from `first` to `last`."""

    first: int
    last: int
    count: int


def _cells(figures: Mapping[str, float], label: str, value: int) -> list[_Cell]:
    """Return a site's cells of one class; each begins after the previous one (`pipeline.evaluation.histograms`)."""
    cells: list[_Cell] = []
    for last in range(BINS):
        if count := figures.get(f"count_{label}_{value}_{last:02}"):
            cells.append(_Cell(cells[-1].last + 1 if cells else 0, last, int(count)))
    return cells


def pool(sites: Mapping[str, Mapping[str, float]], label: str) -> Pooled | None:
    """Pool the histograms of all sites' test patients: ROC curve, AUROC, calibration.

    Parameters
    ----------
    sites : mapping of str to mapping of str to float
        Figures by site, as a model's `figures` in `read_results` holds them.
    label : str
        "pcr_positive" or "severe".

    Returns
    -------
    Pooled or None
        None where no site let out histograms of this label, or where their cells are too few to fit the distributions
        of the classes. The AUROC is NaN where the counts are too coarse for it.
    """
    cells = {name: [_cells(figures, label, value) for value in (0, 1)] for name, figures in sites.items()}
    telling = tuple(name for name, (negative, positive) in cells.items() if negative and positive)
    negative, positive = ([cell for name in telling for cell in cells[name][value]] for value in (0, 1))
    borders = [{cell.first for cell in some} - {0} for some in (negative, positive)]
    if not all(borders) or sum(map(len, borders)) < _FITTED:
        return None
    false, true = _spread(negative, positive)
    patients = round(false.sum() + true.sum())
    possible = _possible(
        {name: (cells[name][0], cells[name][1], sites[name].get(f"auroc_{label}")) for name in telling}
    )
    auroc = _auroc(false, true, possible)
    curve = np.concatenate([[[0.0, 0.0]], np.stack([_from_above(false), _from_above(true)], axis=1)])
    return Pooled(
        sites=telling,
        positive=round(true.sum()),
        negative=round(false.sum()),
        share=patients / sum(figures[EXAMPLES] for figures in sites.values()),
        auroc=auroc,
        possible=possible,
        curve=curve if math.isfinite(auroc.value) else np.zeros((0, 2)),
        reliability=_reliability(false, true),
    )


def _spread(negative: list[_Cell], positive: list[_Cell]) -> tuple[Counts, Counts]:
    """Spread the patients of both classes over single bins.

    Within a cell, the logits of each class are assumed to follow a normal distribution. Both classes have the same
    width, and the distributions are fitted to all cells by maximum likelihood: the binormal model of an ROC curve from
    grouped scores (Dorfman & Alf, J Math Psychol 1969; 6:487). With sites of some 100 patients the error of the AUROC
    is then 0.00 to 0.05, compared with 0.05 to 0.09 if a cell's patients are spread evenly.
    """

    def loss(fit: NDArray[np.float64]) -> float:
        chances = _chances(fit[0], fit[2]), _chances(fit[1], fit[2])
        return -sum(
            cell.count * np.log(bins[cell.first : cell.last + 1].sum())
            for bins, cells in zip(chances, (negative, positive), strict=True)
            for cell in cells
        )

    bounds = [(-10, 10), (-10, 10), (-3, 3)]
    mean_of_negative, mean_of_positive, width = minimize(loss, [-1, 1, 0], method="Nelder-Mead", bounds=bounds).x
    return _fill(negative, _chances(mean_of_negative, width)), _fill(positive, _chances(mean_of_positive, width))


def _chances(mean: float, log_width: float) -> Counts:
    """Return the probability of each bin for normally distributed logits."""
    return np.diff(norm.cdf((_EDGES - mean) / np.exp(log_width))) + _LEAST


def _fill(cells: list[_Cell], chances: Counts) -> Counts:
    counts = np.zeros(BINS)
    for cell in cells:
        bins = slice(cell.first, cell.last + 1)
        counts[bins] += cell.count * chances[bins] / chances[bins].sum()
    return counts


def _from_above(counts: Counts) -> Counts:
    """Return the share of patients at or above each bin, from the highest bin on."""
    return counts[::-1].cumsum() / counts.sum()


def _auroc(false: Counts, true: Counts, possible: tuple[float, float]) -> Estimate:
    """Return the AUROC of binned scores, ties counting half, kept within `possible`.

    The interval begins below the lower and ends above the upper end of `possible`, by the sampling error of a patient's
    placement (`pipeline.evaluation.discrimination.auroc`) on the logit scale. It therefore covers wherever between them
    the AUROC is (Horowitz & Manski, J Am Stat Assoc 2000; 95:77).
    """
    patients = round(true.sum() + false.sum())
    if possible[1] - possible[0] > MOST_UNKNOWN:
        return Estimate.undefined(patients)
    below = (false.cumsum() - false / 2) / false.sum()
    above = 1 - (true.cumsum() - true / 2) / true.sum()
    value = float(true @ below / true.sum())
    variance = sum(
        float(counts @ (placements - value) ** 2 / (counts.sum() - 1) / counts.sum())
        for counts, placements in ((true, below), (false, above))
    )
    rarer = round(min(true.sum(), false.sum()))
    value = min(max(value, possible[0]), possible[1])
    low, _ = _around(possible[0], variance, rarer)
    _, high = _around(possible[1], variance, rarer)
    return Estimate(value, low, high, patients)


def _around(value: float, variance: float, rarer: int) -> tuple[float, float]:
    return logit_interval(min(max(value, _ENDS[0]), _ENDS[1]) if 0 < value < 1 else value, variance, rarer=rarer)


def _possible(sites: Mapping[str, tuple[list[_Cell], list[_Cell], float | None]]) -> tuple[float, float]:
    """Return the shares of pairs that are certainly, and that may be, in the right order.

    `sites`: negative and positive cells, and the site's own AUROC, which tells the order of the site's own pairs.
    """
    certain = maybe = total = 0.0
    for here, (_, positive, own) in sites.items():
        for there, (negative, _, _) in sites.items():
            low, high = _order(negative, positive)
            if here == there and own is not None and math.isfinite(own):
                low, high = max(low, own - _ROUNDED), min(high, own + _ROUNDED)
            pairs = sum(cell.count for cell in positive) * sum(cell.count for cell in negative)
            certain, maybe, total = certain + min(low, high) * pairs, maybe + max(low, high) * pairs, total + pairs
    return certain / total, maybe / total


def _order(negative: list[_Cell], positive: list[_Cell]) -> tuple[float, float]:
    """Return the share of pairs whose positive is certainly in a higher bin, and of those where it may not be lower."""
    pairs = [(one, other, one.count * other.count) for one in positive for other in negative]
    total = sum(count for *_, count in pairs)
    certain = sum(count for one, other, count in pairs if one.first > other.last)
    wrong = sum(count for one, other, count in pairs if one.last < other.first)
    return certain / total, 1 - wrong / total


def _reliability(false: Counts, true: Counts) -> Reliability:
    centres = (np.arange(BINS) + 0.5) / BINS
    patients, predicted, observed = (
        values.reshape(-1, 2).sum(axis=1) for values in (false + true, (false + true) * centres, true)
    )
    known = np.where(patients > 0, patients, np.nan)
    return Reliability(patients, predicted / known, observed / known)
