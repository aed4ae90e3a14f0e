"""At how many sites the model's net benefit is best: rounded figures count only where the true ones must differ."""

import numpy as np
import pytest

from federation.protocol.grids import Shares
from federation.report import trust
from federation.runs.results import ModelFigures, Results
from pipeline.evaluation.calibration import net_benefit
from tests.helpers.results_factory import make_results

PERCENTS = (10, 20, 30, 40, 50)
TREAT_ALL = 1.0  # a probability above each threshold
SITES = 400


def labels_of(site: int) -> np.ndarray:
    """The labels of a site's patients; at least one with and one without."""
    rng = np.random.default_rng(site)
    positive = rng.random(int(rng.integers(20, 500))) < rng.uniform(0.05, 0.6)
    return np.concatenate([positive, [True, False]]).astype(np.int64)


def released(labels: np.ndarray, probabilities: np.ndarray, *, counts: bool) -> dict[str, float]:
    """What a site releases of these patients, on its grid; with `counts` also how many are in each class."""
    exact = {f"net_benefit_severe_{percent}": net_benefit(probabilities, labels, percent / 100) for percent in PERCENTS}
    exact["prevalence_severe"] = float(labels.mean())
    figures = {name: Shares().rounded(value, len(labels)) for name, value in exact.items()}
    if counts:
        figures |= {"count_severe_1_10": float(labels.sum()), "count_severe_0_02": float((1 - labels).sum())}
    return {"num-examples": float(len(labels)) + 50, **figures}  # some patients have no known label


def run_of(figures: dict[str, dict[str, float]]) -> Results:
    model = ModelFigures(name="federated", kind="federated", trained_at=["north"], figures=figures)
    return make_results(["north"], models=[model])


def best(probabilities_of: dict[int, np.ndarray], *, counts: bool) -> dict[str, int]:
    """By threshold: the sites at which a model with these probabilities counts as best."""
    figures = {f"s{k}": released(labels_of(k), found, counts=counts) for k, found in probabilities_of.items()}
    better = trust.decision(run_of(figures))["severe"]["better"]
    assert all(each["of"] == len(probabilities_of) for each in better.values())
    return {percent: each["sites"] for percent, each in better.items()}


def all_but(site: int, label: int) -> np.ndarray:
    """A model that treats everybody but one patient with this label."""
    labels = labels_of(site)
    probabilities = np.full(len(labels), TREAT_ALL)
    probabilities[np.flatnonzero(labels == label)[0]] = 0.0
    return probabilities


@pytest.mark.parametrize("counts", [True, False])
def test_model_that_equals_treating_all_or_none_or_is_worse_by_a_patient_is_never_best(counts: bool) -> None:
    nobody_but_one_well = {site: TREAT_ALL - all_but(site, 0) for site in range(SITES)}
    for model in (
        {site: np.full(len(labels_of(site)), TREAT_ALL) for site in range(SITES)},
        {site: np.zeros(len(labels_of(site))) for site in range(SITES)},
        {site: all_but(site, 1) for site in range(SITES)},
        nobody_but_one_well,
    ):
        assert set(best(model, counts=counts).values()) == {0}


@pytest.mark.parametrize("counts", [True, False])
def test_model_is_best_at_no_site_where_the_exact_figures_say_otherwise(counts: bool) -> None:
    rng = np.random.default_rng(0)
    weak = {site: 0.35 * labels_of(site) + rng.uniform(0, 0.65, len(labels_of(site))) for site in range(SITES)}
    for percent in PERCENTS:
        not_better = {}
        for site, probabilities in weak.items():
            labels = labels_of(site)
            alternatives = (0.0, net_benefit(np.full(len(labels), TREAT_ALL), labels, percent / 100))
            if net_benefit(probabilities, labels, percent / 100) <= max(alternatives):
                not_better[site] = probabilities
        assert len(not_better) > 20
        assert best(not_better, counts=counts)[str(percent)] == 0


@pytest.mark.parametrize(("counts", "least"), [(True, 1.0), (False, 0.9)])
def test_clearly_better_model_is_best_where_there_are_many_patients(counts: bool, least: float) -> None:
    """Without counts a step may look longer than it is, if the shares of a site happen to be round."""
    large = [site for site in range(SITES) if len(labels_of(site)) >= 300 and 0.1 < labels_of(site).mean() < 0.4]
    assert len(large) > 50
    rng = np.random.default_rng(0)
    good = {site: np.clip(labels_of(site) + rng.normal(0, 0.15, len(labels_of(site))), 0, 1) for site in large}
    assert min(best(good, counts=counts).values()) >= least * len(large)


@pytest.mark.parametrize("counts", [{}, {"count_severe_1_10": 15.0, "count_severe_0_02": 15.0}], ids=["none", "counts"])
@pytest.mark.parametrize(("benefit", "sites"), [(0.3, 0), (0.4, 1)])
def test_difference_of_exactly_the_rounding_does_not_count(
    counts: dict[str, float], benefit: float, sites: int
) -> None:
    """At 40 % a false positive weighs 2 / 3. Treating all has 1 / 6; steps of 0.1 hide 0.05 (2 + 2 / 3) = 0.4 / 3."""
    north = {"num-examples": 30.0, "prevalence_severe": 0.5, "net_benefit_severe_40": benefit, **counts}
    assert trust.decision(run_of({"north": north}))["severe"]["better"] == {"40": {"sites": sites, "of": 1}}
