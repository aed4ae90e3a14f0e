"""Pooled metrics: close to the metrics of all patients, and not more certain than the histograms allow."""

import numpy as np
import pytest
from scipy.special import expit

from federation.comparison.pooled import Pooled, pool
from pipeline.evaluation.discrimination import auroc
from pipeline.evaluation.histograms import BINS, histograms

Figures = dict[str, dict[str, float]]


def told(probabilities: np.ndarray, labels: np.ndarray, min_patients: int = 10) -> dict[str, float]:
    """Return the reply of a site. A tenth of its patients have no label."""
    cells = histograms(probabilities, labels, min_patients=min_patients)
    counts = {f"count_severe_{label}_{bin:02}": count for (label, bin), count in cells.items()}
    return {"auroc_severe": 0.5, "num-examples": round(len(labels) / 0.9), **counts}


def simulated(positive: int, negative: int, sites: int, seed: int) -> tuple[Figures, float]:
    """Return the metrics of simulated sites, and the AUROC of all their patients."""
    rng = np.random.default_rng(seed)
    figures, scores, labels = {}, [], []
    for site in range(sites):
        y = np.repeat([1, 0], [positive, negative])
        x = np.where(y, rng.normal(0.5, 1.2, len(y)), rng.normal(-1, 1.0, len(y))) + rng.normal(0, 0.3)
        figures[f"site {site}"] = told(expit(x), y)
        scores.append(x)
        labels.append(y.astype(float))
    return figures, auroc(np.concatenate(scores), np.concatenate(labels)).value


def pooled(figures: Figures) -> Pooled:
    found = pool(figures, "severe")
    assert found is not None
    return found


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(("positive", "negative", "off"), [(40, 60, 0.05), (400, 600, 0.01)])
def test_pooled_auroc_is_near_the_auroc_of_all_patients_and_within_bounds(
    positive: int, negative: int, off: float, seed: int
) -> None:
    figures, truth = simulated(positive, negative, 4, seed)
    found = pooled(figures)
    assert found.auroc.value == pytest.approx(truth, abs=off)
    assert found.possible[0] <= truth <= found.possible[1]
    assert found.possible[0] < found.auroc.value < found.possible[1]
    assert found.auroc.low < found.auroc.value < found.auroc.high
    assert (found.positive, found.negative) == (4 * positive, 4 * negative)
    assert found.auroc.patients == 4 * (positive + negative)
    assert found.share == pytest.approx(0.9, abs=0.01)


def test_pooled_auroc_is_not_the_mean_of_the_site_aurocs() -> None:
    """Both sites separate their classes perfectly, but one site has higher probabilities for all its patients."""
    bins, labels = np.repeat(np.arange(10), 20), np.repeat([0, 1], 100)
    high, low = told((bins + 10.5) / BINS, labels), told((bins + 0.5) / BINS, labels)
    assert pooled({"high": high}).auroc.value == pytest.approx(1, abs=0.05)
    assert pooled({"low": low}).auroc.value == pytest.approx(1, abs=0.05)
    assert pooled({"high": high, "low": low}).auroc.value == pytest.approx(0.75, abs=0.05)


def test_full_bins_give_the_exact_auroc_of_binned_scores_and_its_interval() -> None:
    rng = np.random.default_rng(2)
    labels = np.repeat([1, 0], 3000)
    bins = np.clip(rng.normal(np.where(labels, 12, 8), 4), 0, BINS - 1).astype(int)
    found = pooled({"one": told((bins + 0.5) / BINS, labels)})
    exact = auroc(bins.astype(float), labels.astype(float))
    assert found.auroc.value == pytest.approx(exact.value, abs=1e-3)
    assert (found.auroc.low, found.auroc.high) == pytest.approx((exact.low, exact.high), abs=2e-3)
    assert np.trapezoid(found.curve[:, 1], found.curve[:, 0]) == pytest.approx(found.auroc.value, abs=1e-9)
    assert found.curve[0].tolist() == [0, 0] and found.curve[-1].tolist() == [1, 1]


def test_reliability_of_a_calibrated_model_is_on_the_diagonal() -> None:
    rng = np.random.default_rng(3)
    probabilities = rng.uniform(0, 1, 40_000)
    found = pooled({"one": told(probabilities, (rng.random(40_000) < probabilities).astype(int))}).reliability
    assert found.observed == pytest.approx(found.predicted, abs=0.03)
    assert found.patients.sum() == pytest.approx(40_000)


def test_site_without_histograms_lowers_the_share() -> None:
    figures, _ = simulated(40, 60, 2, 0)
    found = pooled({**figures, "silent": {"auroc_severe": 0.7, "num-examples": 222}})
    assert found.sites == ("site 0", "site 1")
    assert found.share == pytest.approx(200 / 444)


def test_no_pooled_figure_without_histograms_or_with_one_cell_of_a_class() -> None:
    assert pool({"silent": {"auroc_severe": 0.7, "num-examples": 40}}, "severe") is None
    assert pool({}, "severe") is None
    few = told(np.linspace(0, 1, 60), np.repeat([1, 0], [12, 48]))
    assert [value for name, value in few.items() if name.startswith("count_severe_1")] == [12]
    assert pool({"one": few}, "severe") is None
    assert pool(simulated(40, 60, 2, 0)[0], "pcr_positive") is None
