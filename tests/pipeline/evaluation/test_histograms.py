"""Histograms: every patient is counted, and no count is below the minimum."""

import numpy as np
import pytest

from pipeline.evaluation.histograms import BINS, histograms


def test_large_counts_stay_in_their_bins() -> None:
    probabilities = np.repeat((np.arange(BINS) + 0.5) / BINS, 20)
    labels = np.tile(np.repeat([0, 1], [12, 8]), BINS)
    found = histograms(probabilities, labels, min_patients=8)
    assert found == {(label, bin): (12, 8)[label] for label in (0, 1) for bin in range(BINS)}


def test_small_count_is_merged_into_later_bins_and_a_small_rest_into_the_last() -> None:
    probabilities = np.array([*[0.01] * 3, *[0.06] * 4, *[0.11] * 3, *[0.30] * 10, *[0.50] * 2])
    everybody = np.concatenate([probabilities, probabilities])
    found = histograms(everybody, np.repeat([0, 1], len(probabilities)), min_patients=10)
    assert found == {(label, bin): count for label in (0, 1) for bin, count in ((2, 10), (BINS - 1, 12))}


def test_no_histogram_if_one_class_is_below_the_minimum() -> None:
    assert histograms(np.linspace(0, 1, 40), np.repeat([0, 1], [31, 9]), min_patients=10) == {}
    assert histograms(np.linspace(0, 1, 40), np.zeros(40, dtype=int), min_patients=10) == {}


@pytest.mark.parametrize("seed", range(20))
def test_every_count_reaches_the_minimum_and_all_patients_are_counted(seed: int) -> None:
    rng = np.random.default_rng(seed)
    positive, negative = rng.integers(10, 90, 2)
    labels = np.repeat([1, 0], [positive, negative])
    found = histograms(rng.beta(0.5, 2, len(labels)), labels, min_patients=10)
    assert min(found.values()) >= 10
    for label, patients in ((1, positive), (0, negative)):
        assert sum(count for (of, _), count in found.items() if of == label) == patients
