"""A site's counts for a sum: all its patients with a label, or none of them."""

import numpy as np
import pytest

from federation.client.score_counts import score_counts
from federation.protocol.summed_answers import LOAD_EDGES, LOGIT_BINS, SUMMED, load_counts, logit_counts, sites_with
from pipeline.evaluation.ladder import RUNGS

LEAST = 5
RNG = np.random.default_rng(0)
SEVERE = np.repeat([0, 1], [12, 8]).astype(np.float32)
TARGETS = np.stack([np.full(20, np.nan, np.float32), SEVERE], axis=1)  # no known PCR, 8 of 20 severe
LOGITS = RNG.normal(0, 2, (20, 2)).astype(np.float32)
LOADS = RNG.uniform(0, 1, 20)


def totals(counts: dict[str, int], label: str = "severe") -> list[int]:
    """The counted patients: negative and positive ones by logit, then by lesion load."""
    tables = (logit_counts(label), load_counts(label))
    return [
        sum(counts[name] for (at, _), name in names.items() if at is value)
        for names in tables
        for value in (False, True)
    ]


def test_every_patient_is_counted_once_by_logit_and_by_lesion_load() -> None:
    counts = score_counts(LOGITS, TARGETS, LOADS, min_patients=LEAST)
    assert set(counts) == set(SUMMED["evaluate.test"].counts)
    assert totals(counts) == [12, 8, 12, 8]
    assert counts[sites_with("severe")] == 1
    for k in range(LOGIT_BINS):
        inside = (LOGITS[:, 1] >= RUNGS[k]) & (LOGITS[:, 1] < RUNGS[k + 1])
        assert counts[logit_counts("severe")[True, k]] == int((inside & (SEVERE == 1)).sum())


def test_validation_patients_are_counted_by_logit_only() -> None:
    counts = score_counts(LOGITS, TARGETS, min_patients=LEAST)
    assert set(counts) == set(SUMMED["evaluate.calibrate"].counts)


@pytest.mark.parametrize(
    ("logit", "bin"), [(-1e6, 0), (RUNGS[1], 1), (np.nextafter(RUNGS[1], -99), 0), (RUNGS[-2], 49), (1e6, 49)]
)
def test_value_at_an_edge_is_in_the_bin_that_begins_there_and_the_outer_bins_are_open(logit: float, bin: int) -> None:
    from pipeline.evaluation.histograms import exact_histograms

    assert np.flatnonzero(exact_histograms(np.array([logit]), np.array([1]), RUNGS)[1]).tolist() == [bin]


def test_scan_whose_whole_lungs_are_diseased_is_in_the_last_bin() -> None:
    counts = score_counts(LOGITS, TARGETS, np.ones(20), min_patients=LEAST)
    assert counts[load_counts("severe")[True, len(LOAD_EDGES) - 2]] == 8


@pytest.mark.parametrize("least", [9, 13])
def test_label_with_a_small_class_counts_nobody_of_either_class(least: int) -> None:
    counts = score_counts(LOGITS, TARGETS, LOADS, min_patients=least)
    assert set(counts.values()) == {0}
    assert set(counts) == set(SUMMED["evaluate.test"].counts)


@pytest.mark.parametrize("wrong", [np.nan, np.inf])
def test_label_with_a_score_that_is_not_finite_counts_nobody(wrong: float) -> None:
    """The other patients alone would show in which class such patients are."""
    logits = LOGITS.copy()
    logits[3, 1] = wrong
    assert set(score_counts(logits, TARGETS, LOADS, min_patients=LEAST).values()) == {0}
    loads = LOADS.copy()
    loads[3] = wrong
    assert set(score_counts(LOGITS, TARGETS, loads, min_patients=LEAST).values()) == {0}
    logits = LOGITS.copy()
    logits[3, 0] = wrong  # of the other label, which nobody has
    assert totals(score_counts(logits, TARGETS, LOADS, min_patients=LEAST)) == [12, 8, 12, 8]
