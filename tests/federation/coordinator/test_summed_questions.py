"""What the server computes from sums over sites equals what it would compute from all patients together."""

import numpy as np
import pytest

from federation.coordinator.summed_questions import summed_over
from federation.protocol.metric_allowlist import EXAMPLES
from federation.protocol.summed_answers import SUMMED, logit_counts, sites_with, square_of

NAME = logit_counts("severe")[True, 25]
NOTHING = dict.fromkeys(SUMMED["evaluate.test"].counts, 0)


def part(count: int, auroc: float, patients: int) -> dict[str, float]:
    return {**NOTHING, NAME: count, sites_with("severe"): 1, "auroc_severe": auroc, EXAMPLES: patients}


def test_counts_are_added_and_means_are_weighted_by_the_patients_of_those_that_have_them() -> None:
    sites = [part(5, 0.8, 30), part(2, 0.6, 10), part(1, 0.7, 40), {**NOTHING, EXAMPLES: 20}]
    found = summed_over("evaluate.test", sites)
    assert (found.sites, found.patients) == (4, 100)
    assert (found.counts[NAME], found.counts[sites_with("severe")]) == (8, 3)
    assert set(found.counts) == set(NOTHING)
    squares = (3 * 0.64 + 0.36 + 4 * 0.49) / 8
    assert found.means == pytest.approx({"auroc_severe": 0.725, square_of("auroc_severe"): squares})
    assert found.known == pytest.approx({"auroc_severe": 0.8, square_of("auroc_severe"): 0.8})
    assert found.covers("severe")


def test_what_fewer_than_three_hospitals_have_is_in_no_sum() -> None:
    found = summed_over("evaluate.test", [part(5, 0.8, 30), part(2, 0.6, 10), {**NOTHING, EXAMPLES: 60}])
    assert found.patients == 100
    assert not any(found.counts.values())
    assert not found.means and not found.known
    assert not found.covers("severe")


def test_spread_of_distances_over_all_patients_follows_from_means_and_squares() -> None:
    rng = np.random.default_rng(3)
    distances = [rng.normal(middle, sd, n) for middle, sd, n in ((0.1, 0.2, 400), (0.4, 0.1, 200), (-0.2, 0.3, 100))]
    nothing = dict.fromkeys(SUMMED["evaluate.calibrate"].counts, 0)
    sites = [
        {**nothing, "distance_mean": float(d.mean()), "distance_sd": float(d.std(ddof=1)), EXAMPLES: len(d)}
        for d in distances
    ]
    means = summed_over("evaluate.calibrate", sites).means
    spread = means[square_of("distance_sd")] + means[square_of("distance_mean")] - means["distance_mean"] ** 2
    assert spread**0.5 == pytest.approx(np.concatenate(distances).std(), rel=0.01)
    assert set(means) == set(SUMMED["evaluate.calibrate"].means)
