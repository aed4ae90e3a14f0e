"""The score interval of an AUROC."""

import math

import numpy as np
import pytest

from pipeline.evaluation.auroc_variance import hanley_mcneil, score_interval


def test_interval_of_an_observed_auroc_of_1_or_0_has_a_width() -> None:
    low, high = score_interval(1.0, lambda area: hanley_mcneil(area, 10.0, 40.0), 1.96)
    assert high == 1.0
    assert 0.8 < low < 0.97
    low, high = score_interval(0.0, lambda area: hanley_mcneil(area, 10.0, 40.0), 1.96)
    assert low == 0.0
    assert 0.03 < high < 0.3


def test_ends_are_as_many_standard_errors_away_as_asked() -> None:
    ends = score_interval(0.8, lambda area: hanley_mcneil(area, 30.0, 70.0), 1.96)
    for end in ends:
        assert abs(0.8 - end) / math.sqrt(hanley_mcneil(end, 30.0, 70.0)) == pytest.approx(1.96)
    assert ends[0] < 0.8 < ends[1]


def test_interval_ends_at_0_and_1() -> None:
    assert score_interval(0.5, lambda area: 1.0, 1.96) == (0.0, 1.0)
    assert all(map(math.isnan, score_interval(0.5, lambda area: 1.0, math.nan)))


def test_variance_of_many_hospitals_at_once() -> None:
    found = hanley_mcneil(0.8, np.array([10.0, 20.0]), np.array([40.0, 60.0]))
    assert found.tolist() == [hanley_mcneil(0.8, 10, 40), hanley_mcneil(0.8, 20, 60)]
