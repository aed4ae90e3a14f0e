"""Figures of a masked study from its sums, compared with those of the patients who were summed."""

import math

import numpy as np
import pytest

from federation.protocol.summed_answers import Summed, logit_counts, sites_with, square_of
from federation.runs.figures_from_counts import means_row, of_label, pooled_row, share, why_none
from federation.runs.results import Results
from models.calibration import Platt
from models.operating_points import OperatingPoint
from tests.helpers.results_factory import make_results
from tests.helpers.summed_results import area, draw_hospitals, make_secure_results

NAMES = ("north", "south", "east", "west")


@pytest.fixture(scope="module")
def run() -> Results:
    return make_secure_results(NAMES)


def patients(label: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Logits, lesion loads and labels of all hospitals' test patients."""
    drawn = [each[label] for each in draw_hospitals(NAMES).tests.values()]
    return tuple(np.concatenate([getattr(each, of) for each in drawn]) for of in ("logits", "loads", "labels"))


@pytest.mark.parametrize("label", ["severe", "pcr_positive"])
def test_figures_are_those_of_the_patients(run: Results, label: str) -> None:
    found, (logits, loads, labels) = of_label(run, label), patients(label)
    assert found
    assert found.lesion_load
    assert (found.positive, found.negative, found.sites) == (labels.sum(), (1 - labels).sum(), 4)
    for figure, scores in ((found.auroc, logits), (found.lesion_load, loads)):
        assert figure.possible[0] <= area(scores, labels) <= figure.possible[1]
        assert figure.low < figure.possible[0] <= figure.value <= figure.possible[1] < figure.high


@pytest.mark.parametrize("point", ["rule_out", "rule_in"])
def test_table_at_a_threshold_counts_the_patients(run: Results, point: str) -> None:
    found, (logits, _, labels) = of_label(run, "severe"), patients("severe")
    assert found
    at = run.calibration["severe"].probability(logits) >= run.operating_points["severe"][point].threshold - 1e-12
    table = found.tables[point]
    assert (table.true_positive, table.false_positive) == (int(at[labels == 1].sum()), int(at[labels == 0].sum()))
    assert table.true_positive + table.false_negative == found.positive
    assert table.false_positive + table.true_negative == found.negative
    assert table.sensitivity == share(table.true_positive, found.positive)


def test_threshold_between_two_rungs_has_no_table(run: Results) -> None:
    points = {"severe": {"rule_out": OperatingPoint(threshold=0.2)}}
    found = of_label(run.model_copy(update={"operating_points": points}), "severe")
    assert found
    assert found.tables == {}


def test_label_of_two_hospitals_has_no_figure_and_a_reason(run: Results) -> None:
    counts = {**run.models[0].summed.counts, sites_with("severe"): 2}
    two = make_secure_results(NAMES, of_sum={"counts": counts})
    assert of_label(two, "severe") is None
    assert "only 2 of the hospitals" in why_none(two, "severe")
    assert not [name for name in {**pooled_row(two), **means_row(two)} if "severe" in name]
    assert "auroc_pcr_positive" in pooled_row(two)
    none = make_secure_results(NAMES, of_sum={"counts": {}})
    assert "no sum over three hospitals with enough patients" in why_none(none, "severe")
    assert pooled_row(none) == {}


def test_reason_of_the_server_comes_first(run: Results) -> None:
    model = run.models[0].model_copy(update={"withheld": {"severe": "its own reason"}})
    assert why_none(run.model_copy(update={"models": [model]}), "severe") == "its own reason"


def test_label_without_calibration_has_only_figures_of_the_order(run: Results) -> None:
    found = of_label(run.model_copy(update={"calibration": {}}), "severe")
    assert found
    assert (found.calibration, found.benefit, found.tables) == (None, {}, {})
    assert found.auroc.value > 0.5


def test_rows_have_the_names_of_other_studies_and_finite_values(run: Results) -> None:
    pooled, means = pooled_row(run), means_row(run)
    assert all(map(math.isfinite, [*pooled.values(), *means.values()]))
    for name in ("auroc_severe", "brier_severe", "calibration_slope_severe", "sens_at_rule_out_severe"):
        assert pooled[f"{name}_low"] <= pooled[name] <= pooled[f"{name}_high"]
    assert means["auroc_severe_low"] < means["auroc_severe"] < means["auroc_severe_high"]
    assert not [name for name in means if name.endswith("_squared")]


def test_unmasked_study_has_no_sums() -> None:
    plain = make_results(2)
    assert (of_label(plain, "severe"), pooled_row(plain), means_row(plain)) == (None, {}, {})


def of_hospitals(areas: list[float], patients: list[int]) -> Summed:
    """A sum of hospitals with these AUROCs; the counts are those of a third with the label, spread over the bins."""
    weights, values = np.array(patients) / sum(patients), np.array(areas)
    rng, total = np.random.default_rng(0), sum(patients)
    bins = [
        np.digitize(rng.normal(by, 4, n), np.linspace(-8, 8, 49)) for by, n in ((-2, 2 * total // 3), (2, total // 3))
    ]
    counts = {name: int((bins[value] == place).sum()) for (value, place), name in logit_counts("severe").items()}
    name = "auroc_severe"
    means = {name: float(weights @ values), square_of(name): float(weights @ values**2)}
    counts[sites_with("severe")] = len(areas)
    return Summed(sites=len(areas), patients=total, counts=counts, means=means, known=dict.fromkeys(means, 1.0))


def with_sum(run: Results, summed: Summed) -> Results:
    return run.model_copy(update={"models": [run.models[0].model_copy(update={"summed": summed})]})


def test_hospitals_with_one_auroc_do_not_differ(run: Results) -> None:
    found = of_label(with_sum(run, of_hospitals([0.76, 0.75, 0.77, 0.76], [120, 150, 90, 120])), "severe")
    assert found
    assert found.hospitals
    assert found.hospitals.mean.value == pytest.approx(0.76, abs=0.01)
    assert found.hospitals.deviation < found.hospitals.by_chance
    assert found.hospitals.chance > 0.5


def test_hospital_that_is_far_below_the_others_is_no_chance(run: Results) -> None:
    found = of_label(with_sum(run, of_hospitals([0.85, 0.86, 0.5, 0.84], [120, 150, 90, 120])), "severe")
    assert found
    assert found.hospitals
    assert found.hospitals.deviation > 2 * found.hospitals.by_chance
    assert found.hospitals.chance < 0.001
    here, like = found.hospitals.here, found.hospitals.like
    assert like[0] < here[0] < here[1] < like[1]


def test_hospitals_that_are_all_perfect_have_an_interval_of_their_patients(run: Results) -> None:
    found = of_label(with_sum(run, of_hospitals([1.0, 1.0, 1.0], [120, 150, 90])), "severe")
    assert found
    assert found.hospitals
    for low, high in (found.hospitals.here, found.hospitals.like):
        assert 0.85 < low < 0.999
        assert high == 1.0


@pytest.mark.slow
def test_chance_differences_are_rarely_called_none() -> None:
    """Hospitals with the same model and unlike prevalence: at most some in a hundred studies look different."""
    chances = []
    for seed in range(60):
        found = of_label(make_secure_results(NAMES, seed=seed, patients=60, differ=0.0), "pcr_positive")
        assert found
        assert found.hospitals
        chances.append(found.hospitals.chance)
    assert np.mean(np.array(chances) < 0.05) < 0.12
    assert 0.35 < float(np.mean(chances)) < 0.75


def test_bins_are_counted_from_their_lower_rung() -> None:
    """Patients on a rung belong to the bin that begins there, as the threshold on that rung has it."""
    platt = Platt(slope=1.5, intercept=-0.25)
    edge = float(platt.probability(np.array([0.0], dtype=np.float32))[0])
    names = logit_counts("severe")
    counts = dict.fromkeys(names.values(), 0) | {names[True, 25]: 12, names[True, 24]: 8, names[False, 24]: 20}
    counts[sites_with("severe")] = 3
    summed = Summed(sites=3, patients=40, counts=counts)
    run = with_sum(make_secure_results(3, patients=40), summed)
    points = {"severe": {"rule_in": OperatingPoint(threshold=edge)}}
    found = of_label(run.model_copy(update={"calibration": {"severe": platt}, "operating_points": points}), "severe")
    assert found
    assert vars(found.tables["rule_in"]) == {
        "true_positive": 12,
        "false_negative": 8,
        "false_positive": 0,
        "true_negative": 20,
    }
