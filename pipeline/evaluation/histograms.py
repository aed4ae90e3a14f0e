"""Counts of patients by score and label: the input of a pooled ROC curve.

`histograms` merges small cells, for counts that leave a site by themselves. `exact_histograms` does not, for counts
that leave only in a sum over sites.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from pipeline.evaluation.calibration import bin_of

BINS = 20


def histograms(
    probabilities: NDArray[np.float64], labels: NDArray[np.int64], *, min_patients: int
) -> dict[tuple[int, int], int]:
    """Return counts by (label, bin), each at least `min_patients`; the counts of a label sum up to its patients.

    Bins have equal width and are numbered from 0 to BINS - 1. A bin under `min_patients` is merged with the following
    ones until the sum is large enough; the sum is stored at the last of them. A rest at the end is added to the last
    sum, which is then stored at the last bin. The result is empty if a label has fewer than `min_patients`: a single
    class would distort a curve over several sites.
    """
    bins = [np.bincount(bin_of(probabilities[labels == label], BINS), minlength=BINS) for label in (0, 1)]
    if min(counts.sum() for counts in bins) < min_patients:
        return {}
    return {(label, where): count for label in (0, 1) for where, count in _merged(bins[label], min_patients)}


def exact_histograms(
    values: NDArray[np.float64], labels: NDArray[np.int64], edges: Sequence[float]
) -> NDArray[np.int64]:
    """Return counts, shape (2, bins): by label, and by the bin that begins at each of `edges` but the last.

    Values below the first edge are in the first bin, those from the last edge on in the last one. Values are finite.
    """
    where = np.searchsorted(edges[1:-1], values, side="right")
    return np.stack([np.bincount(where[labels == label], minlength=len(edges) - 1) for label in (0, 1)])


def _merged(counts: NDArray[np.int64], least: int) -> list[tuple[int, int]]:
    """Return (last bin, count) of each cell."""
    cells, waiting = [], 0
    for where, count in enumerate(counts.tolist()):
        waiting += count
        if waiting >= least:
            cells.append((where, waiting))
            waiting = 0
    if waiting:  # its own last bin would reveal a single patient, so the cell extends to the end
        cells[-1] = (len(counts) - 1, cells[-1][1] + waiting)
    return cells
