"""Platt scaling: recovery of distortions, regularisation with few patients, confidence bands and pooling."""

from collections.abc import Callable, Sequence

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.special import expit

from federation.protocol.grids import Digits
from models.calibration import Platt, fit_platt, middle, pool


def drawn(count: int, slope: float, intercept: float, seed: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Draw logits, and labels from the correctly calibrated probabilities of these logits."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 2, count).astype(np.float32)
    return logits, (rng.random(count) < expit(slope * logits + intercept)).astype(np.float32)


@pytest.mark.parametrize(("slope", "intercept"), [(1.0, 0.0), (0.4, -1.0), (2.5, 1.5)])
def test_fit_recovers_known_distortion_from_many_patients(slope: float, intercept: float) -> None:
    found = fit_platt(*drawn(20_000, slope, intercept, seed=1))
    assert found.slope == pytest.approx(slope, rel=0.08)
    assert found.intercept == pytest.approx(intercept, abs=0.1)


def test_fit_to_few_patients_stays_near_the_identity() -> None:
    logits, labels = np.array([2.0, -2.0, 1.0], dtype=np.float32), np.array([0, 1, 0], dtype=np.float32)
    few = fit_platt(logits, labels)
    many = fit_platt(np.tile(logits, 200), np.tile(labels, 200))
    assert abs(few.slope - 1) < 0.8 and abs(few.intercept) < 0.5
    assert many.slope < few.slope, "more patients with the same evidence have more influence"


@pytest.mark.parametrize("labels", [[], [np.nan, np.nan]])
def test_fit_without_known_labels_is_the_identity(labels: list[float]) -> None:
    logits = np.linspace(-1, 1, len(labels), dtype=np.float32)
    assert fit_platt(logits, np.array(labels, dtype=np.float32)) == Platt()


def test_missing_labels_are_ignored() -> None:
    logits, labels = drawn(200, 0.5, -1, seed=2)
    with_missing = np.concatenate([logits, [50, -50]]).astype(np.float32)
    known = np.concatenate([labels, [np.nan, np.nan]]).astype(np.float32)
    assert fit_platt(with_missing, known) == fit_platt(logits, labels)


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e4, 1e6])
@pytest.mark.parametrize("truth", ["separable", "the wrong way round", "one class"])
def test_degenerate_data_give_finite_fit_that_preserves_ranking(scale: float, truth: str) -> None:
    logits = (scale * np.linspace(-1, 1, 50)).astype(np.float32)
    labels = {
        "separable": logits > 0,
        "the wrong way round": logits < 0,
        "one class": np.zeros(50),
    }[truth].astype(np.float32)
    found = fit_platt(logits, labels)
    assert np.isfinite([found.slope, found.intercept]).all()
    probability = found.probability(logits)
    assert np.isfinite(probability).all() and (probability >= 0).all() and (probability <= 1).all()
    assert (np.diff(probability) >= 0).all(), "calibration must not reverse the ranking"


@pytest.mark.filterwarnings("error")
def test_probability_matches_manual_calculation_and_extreme_logits() -> None:
    assert Platt(slope=2, intercept=-1).probability(np.array([0.5], dtype=np.float32))[0] == pytest.approx(0.5)
    ends = Platt().probability(np.array([-1e5, 1e5], dtype=np.float32))
    assert ends.tolist() == [0.0, 1.0]


# --- confidence band and pooling ---------------------------------------------------------------------------


@pytest.mark.slow
def test_covariance_matches_variation_between_fits() -> None:
    found = [fit_platt(*drawn(400, 0.7, -0.5, seed)) for seed in range(60)]
    told = np.mean([fit.covariance or () for fit in found], axis=0)
    seen = np.cov([fit.slope for fit in found], [fit.intercept for fit in found])
    assert told[0] == pytest.approx(seen[0, 0], rel=0.4)
    assert told[2] == pytest.approx(seen[1, 1], rel=0.4)


def test_band_matches_manual_calculation() -> None:
    low, high = Platt(slope=2, intercept=-1, covariance=(0.04, -0.01, 0.09)).band(0.5, level=0.9) or (0, 0)
    half = 1.6449 * (0.04 * 0.25 - 0.01 + 0.09) ** 0.5
    assert (low, high) == pytest.approx((expit(-half), expit(half)), abs=1e-4)


def test_fit_without_covariance_has_no_band() -> None:
    old = Platt.model_validate_json('{"slope": 1.2, "intercept": 0.3}')
    assert old.band(1.0) is None
    assert not old.could_be_of(1000)
    with pytest.raises(ValueError, match="covariance"):
        pool([old])


def federation(hospitals: int, patients: int, seed: int, differ: float = 0.0) -> list[Platt]:
    rng = np.random.default_rng(seed)
    pairs = rng.normal([0.6, -0.8], [0.5 * differ, differ], (hospitals, 2)).clip([0.1, -9], 9)
    return [fit_platt(*drawn(patients, *pair, seed=1000 * seed + k)) for k, pair in enumerate(pairs)]


@pytest.mark.slow
def test_pooling_many_hospitals_corrects_shrinkage_of_each_fit() -> None:
    """The penalty pulls each fit towards the identity. The pool applies it once, not once per hospital."""
    fits = federation(40, 30, seed=3)
    pooled = pool(fits)
    assert np.mean([fit.slope for fit in fits]) > 0.65
    assert pooled.slope == pytest.approx(0.6, abs=0.06)
    assert pooled.intercept == pytest.approx(-0.8, abs=0.1)


@pytest.mark.slow
def test_band_is_wider_if_hospitals_differ() -> None:
    alike, unlike = (pool(federation(8, 100, seed=4, differ=differ)) for differ in (0.0, 1.0))
    one = pool(federation(1, 100, seed=4))
    width = {
        name: np.diff(fit.band(1.0) or ())[0] for name, fit in (("alike", alike), ("unlike", unlike), ("one", one))
    }
    assert width["alike"] < width["one"] < width["unlike"]


@pytest.mark.slow
@pytest.mark.parametrize("make", [pool, middle])
def test_band_covers_true_probability_of_differing_hospitals(make: Callable[[Sequence[Platt]], Platt]) -> None:
    """Simulate 40 federations of 4 hospitals. Check each hospital's true probability at three logits."""
    held = []
    for seed in range(40):
        rng = np.random.default_rng(seed)
        pairs = rng.normal([0.8, -0.4], [0.2, 0.4], (4, 2)).clip([0.1, -9], 9)
        fitted = make([fit_platt(*drawn(40, *pair, seed=100 * seed + k)) for k, pair in enumerate(pairs)])
        for at in (-2.0, 0.0, 2.0):
            low, high = fitted.band(at) or (0, 0)
            held += [low <= expit(slope * at + intercept) <= high for slope, intercept in pairs]
    assert np.mean(held) > 0.93
    assert np.mean(held) < 1, "a 95 % band must not have 100 % coverage"


def test_one_outlier_hospital_does_not_shift_the_median() -> None:
    fits = federation(5, 50, seed=6)
    wild = fits[0].model_copy(update={"slope": 80.0, "intercept": -60.0})
    kept, spoilt = middle([*fits[1:], wild]), middle(fits)
    assert abs(kept.slope - spoilt.slope) < 0.5
    assert np.diff(kept.band(1.0) or ())[0] < 0.6


@pytest.mark.parametrize("make", [pool, middle])
def test_pool_of_no_fits_is_the_identity(make: Callable[[Sequence[Platt]], Platt]) -> None:
    assert make([]) == Platt()


@pytest.mark.parametrize("patients", [1, 12, 300])
def test_fit_is_plausible_for_its_number_of_patients(patients: int) -> None:
    fit = fit_platt(*drawn(patients, 0.5, 1, seed=7))
    assert fit.could_be_of(patients)


def four_digits(fit: Platt) -> Platt:
    """Round a fit as a hospital reports it: variances up, covariance towards zero."""
    of_slope, of_both, of_intercept = fit.covariance or (0, 0, 0)
    up, down = Digits(4, 1e-4, "infinity"), Digits(4, 1e-4, "zero")
    near = Digits(4, 0.1)
    return Platt(
        slope=near.rounded(fit.slope),
        intercept=near.rounded(fit.intercept),
        covariance=(up.rounded(of_slope), down.rounded(of_both), up.rounded(of_intercept)),
    )


@pytest.mark.slow
@pytest.mark.parametrize("patients", [3, 10, 50, 200, 1000, 5000])
@pytest.mark.parametrize("spread", [0, 0.01, 0.3, 1, 3, 10, 30])
def test_fit_rounded_to_four_digits_is_plausible_for_its_number_of_patients(patients: int, spread: float) -> None:
    for seed, middle_logit in enumerate((0, -2, -10, 30)):
        rng = np.random.default_rng(seed)
        logits = (rng.normal(size=patients) * spread + middle_logit).astype(np.float32)
        fit = fit_platt(logits, (rng.random(patients) < 0.3).astype(np.float32))
        assert fit.could_be_of(patients) and four_digits(fit).could_be_of(patients)


@pytest.mark.slow
@pytest.mark.parametrize("make", [pool, middle])
@pytest.mark.parametrize("patients", [20, 60, 300])
def test_rounding_to_four_digits_keeps_the_pool(make: Callable[[Sequence[Platt]], Platt], patients: int) -> None:
    """Rounding changes the result by less than a hundredth of the band's width."""
    for seed in range(5):
        fits = federation(5, patients, seed=seed)
        exact, told = make(fits), make([four_digits(fit) for fit in fits])
        for at in (-3.0, 0.0, 3.0):
            width = float(np.diff(exact.band(at) or (0, 0))[0])
            assert np.allclose(exact.band(at) or (), told.band(at) or (), atol=0.01 * width)
            shift = exact.probability(np.array([at])) - told.probability(np.array([at]))
            assert abs(float(shift[0])) < 0.01 * width


@pytest.mark.parametrize(
    "covariance",
    [(0.0, 0.0, 0.0), (0.1, 0.12, 0.1), (0.3, 0.0, 0.1), (-0.1, 0.0, 0.1), (1e-9, 0.0, 1e-9), (0.2, 0.0, 0.02)],
    ids=["no variance", "no covariance matrix", "less than the penalty knows", "negative", "too sure", "sure of one"],
)
def test_implausible_covariance_is_detected(covariance: tuple[float, float, float]) -> None:
    assert not Platt(covariance=covariance).could_be_of(20)


@pytest.mark.parametrize("patients", [20, 100])
def test_rounding_does_not_hide_overstated_certainty(patients: int) -> None:
    """The fits claim an intercept as precise as three times as many patients could give."""
    sure = 1 / (3 * patients / 4 + 4)
    for of_slope in (1e-7, 1e-4, 0.01, 0.2):
        for correlation in (-0.999, -0.5, 0.0, 0.9):
            both = correlation * (of_slope * sure) ** 0.5
            # The information about the intercept is the inverse of its variance given the slope.
            told = four_digits(Platt(covariance=(of_slope, both, sure)))
            assert not told.could_be_of(patients)
