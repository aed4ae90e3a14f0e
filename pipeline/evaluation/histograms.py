"""Counts of patients by probability and label, with small cells merged: what a pooled ROC curve is drawn from."""

import numpy as np
from numpy.typing import NDArray

from pipeline.evaluation.calibration import bin_of

BINS = 20


def histograms(
    probabilities: NDArray[np.float64], labels: NDArray[np.int64], *, min_patients: int
) -> dict[tuple[int, int], int]:
    """Counts by (label, bin); each is of at least `min_patients`, and those of a label sum up to its patients.

    Bins of equal width, from 0 to BINS - 1. A bin under `min_patients` is merged with those after it, until they are
    enough: the count stands at the last of them. What is left at the end joins the last count, which then stands at
    the last bin. Empty where a label has fewer than `min_patients`: one class alone would bend a curve of several
    sites.
    """
    bins = [np.bincount(bin_of(probabilities[labels == label], BINS), minlength=BINS) for label in (0, 1)]
    if min(counts.sum() for counts in bins) < min_patients:
        return {}
    return {(label, where): count for label in (0, 1) for where, count in _merged(bins[label], min_patients)}


def _merged(counts: NDArray[np.int64], least: int) -> list[tuple[int, int]]:
    """(Last bin, count) of each cell."""
    cells, waiting = [], 0
    for where, count in enumerate(counts.tolist()):
        waiting += count
        if waiting >= least:
            cells.append((where, waiting))
            waiting = 0
    if waiting:  # its own last bin would tell where a single patient is, so it reaches to the end
        cells[-1] = (len(counts) - 1, cells[-1][1] + waiting)
    return cells
