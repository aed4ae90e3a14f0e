"""AUROC and related figures: they agree with scikit-learn and a plain bootstrap; intervals cover the true value."""

import math

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.stats import norm
from sklearn.metrics import average_precision_score, roc_auc_score, roc_curve

from pipeline.evaluation.discrimination import (
    auprc,
    auroc,
    auroc_difference,
    delong_variance,
    sensitivity_at,
    specificity_at,
)

Cohort = tuple[NDArray[np.float64], NDArray[np.float64]]


def binormal(rng: np.random.Generator, area: float, positive: int, negative: int) -> Cohort:
    """Scores and labels of a simulated cohort whose true AUROC is `area`."""
    apart = math.sqrt(2) * norm.ppf(area)
    scores = np.concatenate([rng.normal(apart, 1, positive), rng.normal(0, 1, negative)])
    return scores, np.repeat([1.0, 0.0], [positive, negative])


@pytest.fixture
def cohort() -> Cohort:
    """A cohort with ties and some missing labels."""
    scores, labels = binormal(np.random.default_rng(3), 0.8, 30, 70)
    labels[::9] = math.nan
    return scores.round(1), labels


def known(cohort: Cohort) -> Cohort:
    scores, labels = cohort
    return scores[~np.isnan(labels)], labels[~np.isnan(labels)]


def test_95_percent_auroc_intervals_cover_the_true_value_in_95_percent_of_cohorts() -> None:
    held = 0
    for number in range(200):
        found = auroc(*binormal(np.random.default_rng([5, number]), 0.8, 25, 75))
        held += found.low <= 0.8 <= found.high
    assert 0.92 <= held / 200 <= 0.98


def test_intervals_of_an_auroc_difference_cover_the_true_value() -> None:
    """Two correlated scores of the same patients, with AUROCs of 0.85 and 0.70."""
    held = 0
    for number in range(200):
        rng = np.random.default_rng([6, number])
        labels = np.repeat([1.0, 0.0], [40, 60])
        noise = rng.multivariate_normal([0, 0], [[1, 0.5], [0.5, 1]], 100)
        better, worse = (noise[:, k] + labels * math.sqrt(2) * norm.ppf(a) for k, a in enumerate((0.85, 0.7)))
        found = auroc_difference(better, worse, labels)
        held += found.low <= 0.15 <= found.high
    assert 0.92 <= held / 200 <= 0.98


def test_values_equal_scikit_learn(cohort: Cohort) -> None:
    scores, labels = known(cohort)
    assert auroc(*cohort).value == pytest.approx(roc_auc_score(labels, scores))
    assert auprc(*cohort).value == pytest.approx(average_precision_score(labels, scores))
    alarms, found, _ = roc_curve(labels, scores, drop_intermediate=False)
    assert sensitivity_at(0.9, *cohort).value == pytest.approx(found[alarms <= 0.1].max())
    assert specificity_at(0.9, *cohort).value == pytest.approx((1 - alarms)[found >= 0.9].max())
    assert auroc(*cohort).patients == auprc(*cohort).patients == len(labels)


def test_delong_variance_equals_its_definition(cohort: Cohort) -> None:
    """Computed over all pairs, as in equations 4 and 5 of the paper."""
    scores, labels = known(cohort)
    positive, negative = scores[labels == 1], scores[labels == 0]
    right = (positive[:, None] > negative) + 0.5 * (positive[:, None] == negative)
    expected = right.mean(axis=1).var(ddof=1) / len(positive) + right.mean(axis=0).var(ddof=1) / len(negative)
    assert delong_variance(scores, labels.astype(int)) == pytest.approx(expected)


def plain_bootstrap(cohort: Cohort, figure: object, seed: int) -> NDArray[np.float64]:
    """A bootstrap in a plain loop, stratified by class."""
    scores, labels = known(cohort)
    rng = np.random.default_rng(seed)
    values = []
    for _ in range(400):
        index = np.concatenate([rng.choice(np.flatnonzero(labels == k), (labels == k).sum()) for k in (0, 1)])
        values.append(figure(labels[index], scores[index]))  # type: ignore[operator]
    return np.array(values)


def test_bootstrap_intervals_agree_with_a_plain_bootstrap(cohort: Cohort) -> None:
    def sensitivity(labels: NDArray[np.float64], scores: NDArray[np.float64]) -> float:
        alarms, found, _ = roc_curve(labels, scores, drop_intermediate=False)
        return float(found[alarms <= 0.1 + 1e-9].max())

    plain = np.percentile(plain_bootstrap(cohort, sensitivity, 1), [2.5, 97.5])
    ours = sensitivity_at(0.9, *cohort)
    assert (ours.low, ours.high) == pytest.approx(plain, abs=0.07)

    values = plain_bootstrap(cohort, average_precision_score, 2)
    spread = np.std(np.log(values / (1 - values)))
    ours = auprc(*cohort)
    assert (math.log(ours.high / (1 - ours.high)) - math.log(ours.low / (1 - ours.low))) / (2 * 1.96) == pytest.approx(
        spread, rel=0.1
    )


def test_intervals_are_reproducible(cohort: Cohort) -> None:
    assert auprc(*cohort) == auprc(*cohort)
    assert sensitivity_at(0.9, *cohort) == sensitivity_at(0.9, *cohort)


def test_interval_of_a_perfect_score_is_not_degenerate() -> None:
    """The bound is the Clopper-Pearson limit for 8 of 8."""
    scores, labels = np.arange(48.0), np.repeat([0.0, 1.0], [40, 8])
    assert (auroc(scores, labels).low, auroc(scores, labels).high) == pytest.approx((0.631, 1.0), abs=1e-3)
    assert (auroc(-scores, labels).low, auroc(-scores, labels).high) == pytest.approx((0.0, 0.369), abs=1e-3)
    assert sensitivity_at(0.9, scores, labels).low == pytest.approx(0.631, abs=1e-3)
    assert specificity_at(0.9, scores, labels).low == pytest.approx(0.025 ** (1 / 40))
    assert sensitivity_at(0.9, -scores, labels).high == pytest.approx(0.369, abs=1e-3)
    for positive in range(2, 40):  # for all class sizes, to cover rounding
        found = auprc(scores, (scores >= 48 - positive).astype(float))
        assert found.value == 1 and found.low == pytest.approx(0.025 ** (1 / min(positive, 48 - positive)))


def test_intervals_are_wide_for_a_class_of_one_patient_or_equal_scores() -> None:
    one = auroc(np.arange(40.0), np.eye(40)[25])
    assert one.value == pytest.approx(25 / 39)
    assert one.high - one.low > 0.9
    same = auroc(np.zeros(40), np.repeat([0.0, 1.0], 20))
    assert same.value == 0.5
    assert same.low < 0.35 and same.high > 0.65


@pytest.mark.parametrize("figure", [auroc, auprc, lambda x, y: sensitivity_at(0.9, x, y)])
@pytest.mark.parametrize("labels", [[1.0, 1.0, math.nan], [0.0, math.nan, 0.0], [math.nan] * 3, []])
def test_figure_of_one_class_is_nan(figure: object, labels: list[float]) -> None:
    found = figure(np.arange(float(len(labels))), np.array(labels))  # type: ignore[operator]
    assert math.isnan(found.value) and math.isnan(found.low) and math.isnan(found.high)
    assert found.patients == np.count_nonzero(~np.isnan(labels))
    assert str(found) == "–"


def test_difference_of_equal_scores_is_zero_and_of_reversed_scores_is_large(cohort: Cohort) -> None:
    scores, labels = cohort
    same = auroc_difference(scores, scores, labels)
    assert (same.value, same.low, same.high) == (0, 0, 0)
    other = auroc_difference(scores, -scores, labels)
    assert other.value == pytest.approx(2 * auroc(scores, labels).value - 1)
    assert 0 < other.low < other.value < other.high <= 1


def test_difference_of_two_perfect_models_is_as_uncertain_as_each_of_them() -> None:
    """DeLong's variance is zero, but few patients do not show that both models are equal."""
    labels = np.repeat([1.0, 0.0], [10, 30])
    rng = np.random.default_rng(0)
    first, other = (5 * labels + rng.uniform(0, 1, 40) for _ in range(2))
    found = auroc_difference(first, other, labels)
    bound = 1 - 0.025 ** (1 / 10)
    assert (found.value, found.low, found.high) == pytest.approx((0, -bound, bound))
    worst = auroc_difference(first, -other, labels)
    assert (worst.value, worst.low, worst.high) == pytest.approx((1, 1 - 2 * bound, 1))


def test_difference_from_equal_scores_of_all_patients_is_not_certain() -> None:
    labels = np.repeat([1.0, 0.0], 12)
    found = auroc_difference(labels + np.linspace(0, 0.5, 24), np.zeros(24), labels)
    assert found.value == pytest.approx(0.5)
    assert found.low < 0.3 and found.high > 0.7


def test_scores_that_rank_all_patients_alike_do_not_differ() -> None:
    labels = np.repeat([1.0, 0.0], 12)
    scores = labels + np.random.default_rng(1).uniform(0, 0.5, 24)
    same = auroc_difference(scores, np.exp(3 * scores), labels)
    assert (same.value, same.low, same.high) == (0, 0, 0)
