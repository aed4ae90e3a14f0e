"""A site's counts of patients by class and score, which leave it only in a sum over sites."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from federation.protocol.metric_allowlist import LABELS
from federation.protocol.summed_answers import LOAD_EDGES, load_counts, logit_counts, sites_with
from pipeline.evaluation.discrimination import classes_of, known_of
from pipeline.evaluation.histograms import exact_histograms
from pipeline.evaluation.ladder import RUNGS

_Score = tuple[Mapping[tuple[bool, int], str], Sequence[float], NDArray[Any]]  # names, edges of bins, values


def score_counts(
    logits: NDArray[np.float32],
    targets: NDArray[np.float32],
    loads: NDArray[np.float64] | None = None,
    *,
    min_patients: int,
) -> dict[str, int]:
    """Return the counts of `summed_answers` for all labels, and for each whether this site is in its sum, 0 or 1.

    All counts of a label are 0 if a class has fewer than `min_patients`, or if a patient's score is not finite: the
    other patients alone would show how many such patients there are, and in which class.

    Parameters
    ----------
    logits, targets : arrays of float32
        Shape (patients, labels), in the order of LABELS; a missing target is NaN.
    loads : array of float64 or None
        Lesion loads, shape (patients,); None: they are not counted.
    """
    counts: dict[str, int] = {}
    for column, label in enumerate(LABELS):
        scores: list[_Score] = [(logit_counts(label), RUNGS, logits[:, column])]
        if loads is not None:
            scores.append((load_counts(label), LOAD_EDGES, loads))
        found = _of_label(scores, targets[:, column], min_patients)
        counts |= {sites_with(label): int(bool(found))}
        counts |= {name: found.get(name, 0) for names, _, _ in scores for name in names.values()}
    return counts


def _of_label(scores: Sequence[_Score], targets: NDArray[np.float32], min_patients: int) -> dict[str, int]:
    """Return the counts of one label by name; empty if they are withheld."""
    if min(classes_of(targets)) < min_patients:
        return {}
    found: dict[str, int] = {}
    for names, edges, values in scores:
        x, y = known_of(values, targets)
        if not np.isfinite(x).all():
            return {}
        counts = exact_histograms(x, y, edges)
        found |= {name: int(counts[int(value), bin]) for (value, bin), name in names.items()}
    return found
