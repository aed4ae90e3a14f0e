"""Calibration and thresholds from pooled counts: as close to those of the raw logits as the bins allow."""

from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.special import expit
from scipy.stats import beta

from federation.protocol import pooled_counts
from federation.protocol.operating_points import Chosen
from federation.protocol.summed_answers import SUMMED, Summed, logit_counts, sites_with
from models.calibration import BETWEEN, fit_platt
from models.operating_points import AIM, FLOOR, MissingPoint
from pipeline.evaluation.histograms import exact_histograms
from pipeline.evaluation.ladder import RUNGS

Sample = tuple[NDArray[np.float64], NDArray[np.int64]]
SHAPES: dict[str, Callable[[np.random.Generator, int], NDArray[np.float64]]] = {
    "normal": lambda rng, n: rng.normal(-0.5, 1, n),
    "uniform": lambda rng, n: rng.uniform(-2, 2, n),
    "two groups": lambda rng, n: np.where(rng.random(n) < 0.3, rng.normal(2, 0.5, n), rng.normal(-1, 0.5, n)),
    "long tails": lambda rng, n: rng.standard_t(3, n),
}


def sample(shape: str, *, patients: int, spread: float = 1.0, slope: float = 1.0, seed: int = 0) -> Sample:
    rng = np.random.default_rng(seed)
    x = spread * SHAPES[shape](rng, patients)
    return x, (rng.random(patients) < expit(slope * x - 0.4)).astype(np.int64)


def summed(x: NDArray[np.float64], y: NDArray[np.int64], *, sites: int = 3) -> Summed:
    counts = dict.fromkeys(SUMMED["evaluate.calibrate"].counts, 0) | {sites_with("severe"): sites}
    table = exact_histograms(x, y, RUNGS)
    counts |= {name: int(table[int(value), bin]) for (value, bin), name in logit_counts("severe").items()}
    return Summed(sites=max(3, sites), patients=len(x), counts=counts)


def slopes(*arguments: str, **options: float) -> tuple[float, float, float]:
    """The slope from counts, that from raw logits, and the latter's standard error."""
    x, y = sample(*arguments, **options)  # type: ignore[arg-type]
    raw = fit_platt(x.astype(np.float32), y.astype(np.float32))
    assert raw.covariance is not None
    return pooled_counts.fit_counts(exact_histograms(x, y, RUNGS)).slope, raw.slope, raw.covariance[0] ** 0.5


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("spread", [1.0, 3.0])
def test_slope_from_counts_is_within_two_percent_of_that_from_raw_logits(shape: str, spread: float) -> None:
    for seed in range(3):
        found, raw, _ = slopes(shape, patients=600, spread=spread, seed=seed)
        assert found == pytest.approx(raw, rel=0.02)


@pytest.mark.parametrize("spread", [0.1, 0.3])
def test_logits_as_narrow_as_a_bin_change_the_slope_by_less_than_half_a_standard_error(spread: float) -> None:
    away = [
        (found - raw) / error
        for found, raw, error in (slopes("normal", patients=300, spread=spread, seed=seed) for seed in range(8))
    ]
    assert max(map(abs, away)) < 0.5
    assert abs(np.mean(away)) < 0.1, "the midpoint of a bin would make slopes too small"


def test_intercept_and_covariance_are_those_of_the_raw_logits() -> None:
    x, y = sample("normal", patients=600)
    raw = fit_platt(x.astype(np.float32), y.astype(np.float32))
    found = pooled_counts.fit_counts(exact_histograms(x, y, RUNGS))
    assert found.intercept == pytest.approx(raw.intercept, abs=0.01)
    assert found.covariance == pytest.approx(raw.covariance, rel=0.03)


def test_patients_in_the_open_bins_count_at_about_where_they_are() -> None:
    """A third of the patients is beyond ±10, where the bins have no outer edge."""
    x, y = sample("normal", patients=600, spread=10.0, slope=0.2)
    assert (np.abs(x) > RUNGS[-2]).mean() > 0.25
    raw = fit_platt(x.astype(np.float32), y.astype(np.float32))
    assert pooled_counts.fit_counts(exact_histograms(x, y, RUNGS)).slope == pytest.approx(raw.slope, rel=0.03)


def test_all_patients_of_a_class_in_one_bin_or_none_at_all_give_a_finite_fit() -> None:
    counts = np.zeros((2, len(RUNGS) - 1), np.int64)
    assert pooled_counts.fit_counts(counts).slope == 1.0
    counts[0, 0], counts[1, -1] = 30, 30
    fit = pooled_counts.fit_counts(counts)
    assert np.isfinite([fit.slope, fit.intercept]).all()


def test_band_is_that_of_a_new_hospital_with_the_differences_of_the_prior() -> None:
    x, y = sample("normal", patients=300)
    one, pooled = pooled_counts.fit_counts(exact_histograms(x, y, RUNGS)), pooled_counts.calibration(summed(x, y))
    assert set(pooled) == {"severe"}
    assert one.covariance is not None
    assert pooled["severe"].covariance == pytest.approx(
        (one.covariance[0] + BETWEEN[0] ** 2, one.covariance[1], one.covariance[2] + BETWEEN[1] ** 2)
    )


# --- thresholds -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("point", ["rule_out", "rule_in"])
@pytest.mark.parametrize("seed", range(4))
def test_threshold_is_the_furthest_rung_that_exact_counts_allow(point: str, seed: int) -> None:
    x, y = sample("normal", patients=300, spread=1.5, slope=1.5, seed=seed)
    found = pooled_counts.choose(summed(x, y), "severe", point)
    assert isinstance(found, Chosen)
    assert found.logit in RUNGS[1:-1]
    of_class = x[y == 1] if point == "rule_out" else -x[y == 0]
    at = found.logit if point == "rule_out" else -found.logit
    rungs = sorted(rung if point == "rule_out" else -rung for rung in RUNGS[1:-1])

    def is_safe(rung: float) -> bool:
        reached = (of_class >= rung).sum() if point == "rule_out" else (of_class > rung).sum()
        share, low = reached / len(of_class), beta.ppf(0.05, reached, len(of_class) - reached + 1)
        return bool(share >= AIM and low >= FLOOR)

    assert is_safe(at)
    assert not is_safe(next(rung for rung in rungs if rung > at))
    evidence = found.evidence
    assert (evidence.positives, evidence.negatives) == (int(y.sum()), int((1 - y).sum())), "exact, not in steps"
    reached = round(evidence.value * len(of_class))
    assert evidence.low == pytest.approx(beta.ppf(0.05, reached, len(of_class) - reached + 1))
    assert evidence.high == pytest.approx(beta.ppf(0.95, reached + 1, len(of_class) - reached))


def test_fewer_than_twenty_patients_of_a_class_have_no_threshold() -> None:
    x, y = np.linspace(-2, 2, 60), np.repeat([0, 1], [41, 19])
    expected = MissingPoint(why="too_few", positives=19, negatives=41, sites=4)
    assert pooled_counts.choose(summed(x, y, sites=4), "severe", "rule_in") == expected


def test_counts_beyond_the_ladder_alone_have_no_threshold() -> None:
    x, y = np.repeat([-50.0, -60.0], [30, 30]), np.repeat([0, 1], [30, 30])
    found = pooled_counts.choose(summed(x, y), "severe", "rule_out")
    assert isinstance(found, MissingPoint)
    assert found.why == "not_reached"


@pytest.mark.parametrize("sites", [0, 1, 2])
def test_no_figure_of_a_label_is_used_if_fewer_than_three_hospitals_are_in_its_sum(sites: int) -> None:
    x, y = sample("normal", patients=300)
    few = summed(x, y, sites=sites)
    assert pooled_counts.calibration(few) == {}
    points = pooled_counts.choose_all(few)["severe"]
    assert points == dict.fromkeys(("rule_out", "rule_in"), MissingPoint(why="few_hospitals", sites=sites))
    expected = f"only {sites} of the hospitals" if sites else "no sum over three hospitals"
    assert expected in points["rule_in"].text("rule_in")  # type: ignore[union-attr]
    assert pooled_counts.thresholds(pooled_counts.choose_all(few)) == {"pcr_positive": {}, "severe": {}}
