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
    return {"num-examples": round(len(labels) / 0.9), **counts}


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


def scores_of_mixture(positive: int, negative: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    y = np.repeat([1, 0], [positive, negative])
    means = np.where(y == 1, np.where(rng.random(len(y)) < 0.25, -1.5, 1.5), -0.5)
    return means + rng.normal(0, 1, len(y)), y


def mixture(positive: int, negative: int, shift: float, rng: np.random.Generator) -> dict[str, float]:
    """Return the reply of a site."""
    x, y = scores_of_mixture(positive, negative, rng)
    return told(expit(x + shift), y) | {"auroc_severe": round(auroc(x, y.astype(float)).value, 2)}


def true_of_mixture(*shifts: float) -> float:
    rng = np.random.default_rng(0)
    drawn = [scores_of_mixture(100_000, 200_000, rng) for _ in shifts]
    x = np.concatenate([each + shift for (each, _), shift in zip(drawn, shifts, strict=True)])
    return auroc(x, np.concatenate([y for _, y in drawn]).astype(float)).value


def pooled(figures: Figures) -> Pooled:
    found = pool(figures, "severe")
    assert found is not None
    return found


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(("positive", "negative", "off"), [(150, 250, 0.02), (400, 600, 0.01)])
def test_pooled_auroc_is_near_the_auroc_of_all_patients_and_within_bounds(
    positive: int, negative: int, off: float, seed: int
) -> None:
    figures, truth = simulated(positive, negative, 4, seed)
    found = pooled(figures)
    assert found.auroc.value == pytest.approx(truth, abs=off)
    assert found.possible[0] <= truth <= found.possible[1]
    assert found.possible[0] <= found.auroc.value <= found.possible[1]
    assert found.auroc.low < found.possible[0] and found.possible[1] < found.auroc.high
    assert (found.positive, found.negative) == (4 * positive, 4 * negative)
    assert found.auroc.patients == 4 * (positive + negative)
    assert found.share == pytest.approx(0.9, abs=0.01)


@pytest.mark.parametrize(("positive", "negative"), [(12, 20), (25, 50), (40, 60)])
def test_coarse_counts_give_no_pooled_auroc(positive: int, negative: int) -> None:
    """The order of most patients is not known. A value would depend on an assumed distribution."""
    figures, truth = simulated(positive, negative, 3, 0)
    found = pool(figures, "severe")
    if found is None:
        assert positive == 12, "fewer than three borders between cells"
        return
    assert found.possible[0] < truth < found.possible[1]
    assert np.isnan([found.auroc.value, found.auroc.low, found.auroc.high]).all()
    assert found.curve.size == 0
    assert found.reliability.patients.sum() == pytest.approx(3 * (positive + negative))


def test_own_auroc_of_a_site_tells_the_order_of_its_own_pairs() -> None:
    figures, truth = simulated(150, 250, 1, 2)
    without = pooled({name: {k: v for k, v in each.items() if k != "auroc_severe"} for name, each in figures.items()})
    told = pooled({name: each | {"auroc_severe": round(truth, 2)} for name, each in figures.items()})
    assert told.possible == pytest.approx((round(truth, 2) - 0.005, round(truth, 2) + 0.005))
    assert without.possible[0] <= told.possible[0] and told.possible[1] <= without.possible[1]
    assert told.possible[1] - told.possible[0] < without.possible[1] - without.possible[0]


@pytest.mark.slow
def test_interval_covers_the_auroc_of_all_patients_for_mixtures_and_shifted_sites() -> None:
    """A quarter of the positives look negative, and sites differ in their mean score. No distribution fits this."""
    held = shown = 0
    shifts = (-0.6, 0.0, 0.6)
    truth = true_of_mixture(*shifts)
    for number in range(40):
        rng = np.random.default_rng(number)
        figures: Figures = {}
        for site, shift in enumerate(shifts):
            figures[f"site {site}"] = mixture(150, 300, shift, rng)
        found = pooled(figures)
        if np.isfinite(found.auroc.value):
            shown += 1
            held += found.auroc.low <= truth <= found.auroc.high
    assert shown >= 20 and held >= 0.93 * shown


def test_pooled_auroc_is_not_the_mean_of_the_site_aurocs() -> None:
    """Both sites separate their classes perfectly, but one site has higher probabilities for all its patients."""
    bins, labels = np.repeat(np.arange(10), 20), np.repeat([0, 1], 100)
    high, low = (told((bins + first) / BINS, labels) | {"auroc_severe": 1.0} for first in (10.5, 0.5))
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
    assert found.auroc.low == pytest.approx(exact.low - (exact.value - found.possible[0]), abs=3e-3)
    assert found.auroc.high == pytest.approx(exact.high + (found.possible[1] - exact.value), abs=3e-3)
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
    assert np.isnan(found.auroc.value)
    assert found.sites == ("site 0", "site 1")
    assert found.share == pytest.approx(200 / 444)


def test_no_pooled_figure_without_histograms_or_with_one_cell_of_a_class() -> None:
    assert pool({"silent": {"auroc_severe": 0.7, "num-examples": 40}}, "severe") is None
    assert pool({}, "severe") is None
    few = told(np.linspace(0, 1, 60), np.repeat([1, 0], [12, 48]))
    assert [value for name, value in few.items() if name.startswith("count_severe_1")] == [12]
    assert pool({"one": few}, "severe") is None
    assert pool(simulated(40, 60, 2, 0)[0], "pcr_positive") is None
