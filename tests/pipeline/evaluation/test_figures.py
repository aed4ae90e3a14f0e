"""The figures a site sends: no NaN, no figure over few patients, and the values of the single functions."""

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.special import logit

from models.calibration import Platt, fit_platt
from models.network_settings import LABELS
from pipeline.cohort.dataset import Example, Examples
from pipeline.evaluation import discrimination, figures
from pipeline.evaluation.calibration import calibration_slope
from pipeline.evaluation.discrimination import auroc, known_of
from pipeline.evaluation.figures import Deployed, calibration_figures, may_report_loss, round_figures, tail_figures
from pipeline.evaluation.ladder import RUNGS
from pipeline.evaluation.subgroups import GROUPS, groups_of
from tests.helpers.scan_list import measures
from tests.pipeline.evaluation.people import WINDOW_HU, people

LEAST = 10
Evaluate = Callable[..., dict[str, float]]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(discrimination, "BOOTSTRAPS", 20)


def logits_for(examples: Examples, seed: int = 0) -> NDArray[np.float32]:
    """Logits of an informative model. Patients without a label have logits too."""
    noise = np.random.default_rng(seed).normal(0, 1.2, examples.targets.shape)
    return (np.nan_to_num(examples.targets, nan=0.5) * 2 - 1 + noise).astype(np.float32)


def evaluate(test: Examples, logits: NDArray[np.float32], deployed: Deployed, **options: object) -> dict[str, float]:
    settings = {"min_patients": LEAST, "histograms": False, "window_hu": WINDOW_HU} | options
    return figures.test_figures(logits, test, test, deployed, **settings)  # type: ignore[arg-type]


DEPLOYED = Deployed(
    {label: Platt(slope=0.8, intercept=-0.2) for label in LABELS},
    {label: {"rule_out": -0.5, "rule_in": 0.5} for label in LABELS},
)


def test_figures_equal_the_results_of_the_single_functions(tmp_path: Path) -> None:
    test = people(tmp_path, 200, loads=(0.0, 0.3, 0.6))
    logits = logits_for(test)
    found = evaluate(test, logits, DEPLOYED)
    for column, label in enumerate(LABELS):
        x, y = known_of(logits[:, column], test.targets[:, column])
        told = auroc(x, y)
        assert [found[f"auroc_{label}{end}"] for end in ("", "_low", "_high")] == [told.value, told.low, told.high]
        assert found[f"prevalence_{label}"] == pytest.approx(y.mean())
        assert found[f"calibration_slope_{label}"] == pytest.approx(calibration_slope(0.8 * x - 0.2, y))
        assert found[f"sens_at_rule_out_{label}"] == pytest.approx((x[y == 1] >= -0.5).mean())
        assert found[f"spec_at_rule_in_{label}"] == pytest.approx((x[y == 0] < 0.5).mean())
        older = np.array([e.age_years is not None and e.age_years >= 70 for e in test.examples])
        group = auroc(logits[older, column], test.targets[older, column])
        assert found[f"auroc_{label}@from_70"] == group.value
        assert found[f"auroc_{label}_over_age_sex"] == pytest.approx(
            found[f"auroc_{label}"] - found[f"auroc_{label}_age_sex"]
        )
        losses = np.where(y == 1, np.log1p(np.exp(-x)), np.log1p(np.exp(x)))
        assert found[f"loss_{label}"] == pytest.approx(losses.mean(), rel=1e-5)
    assert not [name for name in found if name.startswith("count")]


def test_probabilities_are_uncalibrated_without_a_deployed_calibration(tmp_path: Path) -> None:
    test = people(tmp_path, 100)
    found = evaluate(test, logits_for(test), Deployed())
    assert (
        found["calibration_slope_severe"]
        == evaluate(test, logits_for(test), Deployed({"severe": Platt()}, {"severe": {"rule_in": 1.0}}))[
            "calibration_slope_severe"
        ]
    )
    assert not [name for name in found if "rule" in name]


@pytest.mark.parametrize("seed", range(12))
def test_no_figure_is_nan_or_over_few_patients_for_any_cohort(tmp_path: Path, seed: int) -> None:
    """Small cohorts, one class only, logits that are all equal or extremely large or small."""
    rng = np.random.default_rng(seed)
    test = people(tmp_path, int(rng.integers(0, 45)), seed=seed)
    kept = [e for e in test.examples if e.severe or seed % 3]
    test = Examples(kept)
    logits = logits_for(test, seed) * (1.0, 0.0, 1e30, 1e-30)[seed % 4]
    found = evaluate(test, logits.astype(np.float32), DEPLOYED, histograms=True)
    found |= round_figures(logits, test.targets, min_patients=LEAST)
    found |= calibration_figures(logits, test.targets, min_patients=LEAST)
    assert all(math.isfinite(value) for value in found.values())
    for column, label in enumerate(LABELS):
        known = [test.examples[k] for k in np.flatnonzero(~np.isnan(test.targets[:, column]))]
        of_label = [name for name in found if label in name]
        severe = sum(bool(test.targets[k, column]) for k in np.flatnonzero(~np.isnan(test.targets[:, column])))
        if min(severe, len(known) - severe) < LEAST:
            assert not of_label
        for group in GROUPS:
            inside = [e for e in known if group in groups_of(e.age_years, e.sex, e.measures.manufacturer)]  # type: ignore[union-attr]
            assert len(inside) >= LEAST or not [name for name in of_label if f"@{group}" in name]
    assert all(value >= LEAST for name, value in found.items() if name.startswith("count"))


def test_figures_are_reported_from_the_minimum_number_of_patients_of_each_class_on(tmp_path: Path) -> None:
    tensor = people(tmp_path, 1).examples[0].tensor
    examples = [
        Example(tensor, 60.0, "F", True, number % 2 == 0, measures(manufacturer="GE")) for number in range(2 * LEAST)
    ]
    test = Examples(examples)
    found = evaluate(test, logits_for(test), DEPLOYED)
    assert {"auroc_severe", "auroc_severe@ge", "auroc_severe@female", "brier_severe", "prevalence_severe"} <= set(found)
    assert "auroc_severe@male" not in found
    for few in (Examples(examples[1:]), Examples(examples[:-1])):
        assert not evaluate(few, logits_for(few), DEPLOYED, histograms=True)
        assert not round_figures(logits_for(few), few.targets, min_patients=LEAST)
        assert not calibration_figures(logits_for(few), few.targets, min_patients=LEAST)


@pytest.mark.parametrize(
    ("severe", "pcr_positive", "expected"),
    [((10, 10), (0, 0), True), ((10, 9), (0, 0), False), ((10, 10), (0, 30), False), ((0, 0), (0, 0), False)],
)
def test_training_loss_is_reported_if_every_label_has_enough_of_both_classes(
    severe: tuple[int, int], pcr_positive: tuple[int, int], expected: bool
) -> None:
    targets = np.full((60, 2), np.nan, dtype=np.float32)
    for column, sizes in ((LABELS.index("severe"), severe), (LABELS.index("pcr_positive"), pcr_positive)):
        targets[: sum(sizes), column] = np.repeat([0, 1], sizes)
    assert may_report_loss(targets, min_patients=LEAST) == expected


def test_diverged_model_reports_no_out_of_range_figure(tmp_path: Path) -> None:
    test = people(tmp_path, 100)
    found = round_figures(logits_for(test) * 1e6, test.targets, min_patients=LEAST)
    assert "loss_severe" not in found and "auroc_severe" in found


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
def test_label_with_a_logit_that_is_not_finite_has_no_figure_and_the_other_label_has_all(
    tmp_path: Path, wrong: float
) -> None:
    """The site does not fail, and metrics of the other patients do not show who it was."""
    test = people(tmp_path, 100)
    sound = logits_for(test)
    broken = sound.copy()
    broken[np.flatnonzero(test.targets[:, 1] == 1)[0], 1] = wrong
    for found_for in (
        lambda logits: evaluate(test, logits, DEPLOYED, histograms=True),
        lambda logits: round_figures(logits, test.targets, min_patients=LEAST),
        lambda logits: calibration_figures(logits, test.targets, min_patients=LEAST),
    ):
        expected, found = found_for(sound), found_for(broken)
        assert LABELS[1] == "severe" and any("severe" in name for name in expected)
        assert found == {name: value for name, value in expected.items() if "severe" not in name} != {}


def test_logit_of_a_patient_without_the_label_may_be_anything(tmp_path: Path) -> None:
    test = people(tmp_path, 100)
    targets = test.targets.copy()
    targets[0, 1] = np.nan
    logits = logits_for(test)
    expected = round_figures(logits, targets, min_patients=LEAST)
    logits[0, 1] = np.nan
    assert round_figures(logits, targets, min_patients=LEAST) == expected


def test_allowed_histograms_count_calibrated_probabilities(tmp_path: Path) -> None:
    test = people(tmp_path, 300)
    probabilities = np.random.default_rng(1).uniform(0.02, 0.98, test.targets.shape)
    logits = ((logit(probabilities) + 0.2) / 0.8).astype(np.float32)
    found = evaluate(test, logits, DEPLOYED, histograms=True, min_patients=2)
    counts = {name: value for name, value in found.items() if name.startswith("count_severe_1")}
    severe = test.targets[:, 1] == 1
    assert sum(counts.values()) == severe.sum()
    assert all(type(value) is int for value in counts.values())
    first = min(counts)
    low = (int(first[-2:]) + 1) / 20
    assert counts[first] == np.count_nonzero(severe & (probabilities[:, 1] < low))


def test_calibration_is_fitted_to_raw_logits(tmp_path: Path) -> None:
    validation = people(tmp_path, 120)
    logits = logits_for(validation)
    found = calibration_figures(logits, validation.targets, min_patients=LEAST)
    covariance = ("variance_slope", "covariance", "variance_intercept")
    tails = [f"{point}_{{}}_{percent}" for point in ("rule_out", "rule_in") for percent in ("00", "10", "20")]
    fitted_names = [f"{part}_{{}}" for part in ("slope", "intercept", *covariance, "positives", "negatives")]
    assert set(found) == {name.format(label) for name in (*fitted_names, *tails) for label in LABELS}
    for column, label in enumerate(LABELS):
        fitted = fit_platt(logits[:, column], validation.targets[:, column])
        assert (found[f"slope_{label}"], found[f"intercept_{label}"]) == (fitted.slope, fitted.intercept)
        assert tuple(found[f"{part}_{label}"] for part in covariance) == fitted.covariance


def test_tails_tell_where_few_patients_of_a_class_are_missed(tmp_path: Path) -> None:
    validation = people(tmp_path, 200)
    logits = logits_for(validation)
    found = calibration_figures(logits, validation.targets, min_patients=LEAST)
    for column, label in enumerate(LABELS):
        x, y = known_of(logits[:, column], validation.targets[:, column])
        positives, negatives = found[f"positives_{label}"], found[f"negatives_{label}"]
        assert positives % 3 == negatives % 3 == 0
        assert 0 <= (y == 1).sum() - positives <= 2 and 0 <= (y == 0).sum() - negatives <= 4
        for percent in (0, 10, 20):
            at = found[f"rule_out_{label}_{percent:02}"]
            allowed = int(positives) * percent // 100 // 3 * 3 + 1
            assert (x[y == 1] < at).sum() <= allowed < (x[y == 1] < RUNGS[RUNGS.index(at) + 1]).sum()
            at = found[f"rule_in_{label}_{percent:02}"]
            allowed = int(negatives) * percent // 100 // 3 * 3 + 1
            assert (x[y == 0] >= at).sum() <= allowed < (x[y == 0] >= RUNGS[RUNGS.index(at) - 1]).sum()


def test_tail_of_a_label_with_a_small_class_stays_at_the_site() -> None:
    logits, labels = np.arange(30.0), np.repeat([1, 0], [9, 21])
    assert tail_figures(logits, labels, "severe", min_patients=10) == {}
    assert tail_figures(logits, labels, "severe", min_patients=9)["positives_severe"] == 9


def test_patient_close_to_the_centre_does_not_dominate_the_distance() -> None:
    looks = np.random.default_rng(3).normal(size=(24, 51)).astype(np.float32)
    ones = np.ones(51, np.float32)
    there = figures.distance_figures(looks, looks[0] + np.float32(1e-6), ones)
    elsewhere = figures.distance_figures(looks[1:], looks[0] + np.float32(1e-6), ones)
    assert abs(there["distance_mean"] - elsewhere["distance_mean"]) < 0.05
    assert there["distance_sd"] < 0.3
