"""Platt scaling: it finds a distortion that is there, believes a handful of patients little, and says how little."""

from collections.abc import Callable, Sequence

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.special import expit

from federation.protocol.grids import Digits
from models.calibration import Platt, fit_platt, middle, pool


def drawn(count: int, slope: float, intercept: float, seed: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Logits of a model, and labels drawn from what the logits ought to have been."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 2, count).astype(np.float32)
    return logits, (rng.random(count) < expit(slope * logits + intercept)).astype(np.float32)


@pytest.mark.parametrize(("slope", "intercept"), [(1.0, 0.0), (0.4, -1.0), (2.5, 1.5)])
def test_a_known_distortion_is_recovered_from_many_patients(slope: float, intercept: float) -> None:
    found = fit_platt(*drawn(20_000, slope, intercept, seed=1))
    assert found.slope == pytest.approx(slope, rel=0.08)
    assert found.intercept == pytest.approx(intercept, abs=0.1)


def test_few_patients_stay_near_as_it_is() -> None:
    logits, labels = np.array([2.0, -2.0, 1.0], dtype=np.float32), np.array([0, 1, 0], dtype=np.float32)
    few = fit_platt(logits, labels)
    many = fit_platt(np.tile(logits, 200), np.tile(labels, 200))
    assert abs(few.slope - 1) < 0.8 and abs(few.intercept) < 0.5
    assert many.slope < few.slope, "the same evidence from more patients counts for more"


@pytest.mark.parametrize("labels", [[], [np.nan, np.nan]])
def test_without_a_known_label_nothing_changes(labels: list[float]) -> None:
    logits = np.linspace(-1, 1, len(labels), dtype=np.float32)
    assert fit_platt(logits, np.array(labels, dtype=np.float32)) == Platt()


def test_missing_labels_are_left_out() -> None:
    logits, labels = drawn(200, 0.5, -1, seed=2)
    with_missing = np.concatenate([logits, [50, -50]]).astype(np.float32)
    known = np.concatenate([labels, [np.nan, np.nan]]).astype(np.float32)
    assert fit_platt(with_missing, known) == fit_platt(logits, labels)


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e4, 1e6])
@pytest.mark.parametrize("truth", ["separable", "the wrong way round", "one class"])
def test_awkward_data_give_finite_numbers_that_keep_the_order(scale: float, truth: str) -> None:
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
    assert (np.diff(probability) >= 0).all(), "calibration must not turn the ranking round"


@pytest.mark.filterwarnings("error")
def test_probability_by_hand_and_at_the_ends() -> None:
    assert Platt(slope=2, intercept=-1).probability(np.array([0.5], dtype=np.float32))[0] == pytest.approx(0.5)
    ends = Platt().probability(np.array([-1e5, 1e5], dtype=np.float32))
    assert ends.tolist() == [0.0, 1.0]


# --- the band ---------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_fit_is_as_uncertain_as_fits_to_other_patients_differ() -> None:
    found = [fit_platt(*drawn(400, 0.7, -0.5, seed)) for seed in range(60)]
    told = np.mean([fit.covariance or () for fit in found], axis=0)
    seen = np.cov([fit.slope for fit in found], [fit.intercept for fit in found])
    assert told[0] == pytest.approx(seen[0, 0], rel=0.4)
    assert told[2] == pytest.approx(seen[1, 1], rel=0.4)


def test_the_band_by_hand() -> None:
    low, high = Platt(slope=2, intercept=-1, covariance=(0.04, -0.01, 0.09)).band(0.5, level=0.9) or (0, 0)
    half = 1.6449 * (0.04 * 0.25 - 0.01 + 0.09) ** 0.5
    assert (low, high) == pytest.approx((expit(-half), expit(half)), abs=1e-4)


def test_without_a_covariance_there_is_no_band() -> None:
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
def test_many_hospitals_find_what_each_alone_cannot() -> None:
    """Each fit is pulled to "as it is" by the penalty, which counts once in the pool and not once a hospital."""
    fits = federation(40, 30, seed=3)
    pooled = pool(fits)
    assert np.mean([fit.slope for fit in fits]) > 0.65
    assert pooled.slope == pytest.approx(0.6, abs=0.06)
    assert pooled.intercept == pytest.approx(-0.8, abs=0.1)


@pytest.mark.slow
def test_a_hospital_of_its_own_is_known_less_well_where_hospitals_differ() -> None:
    alike, unlike = (pool(federation(8, 100, seed=4, differ=differ)) for differ in (0.0, 1.0))
    one = pool(federation(1, 100, seed=4))
    width = {
        name: np.diff(fit.band(1.0) or ())[0] for name, fit in (("alike", alike), ("unlike", unlike), ("one", one))
    }
    assert width["alike"] < width["one"] < width["unlike"]


@pytest.mark.slow
@pytest.mark.parametrize("make", [pool, middle])
def test_the_band_holds_the_truth_of_differing_hospitals(make: Callable[[Sequence[Platt]], Platt]) -> None:
    """Forty federations of four; each hospital's true probability at three logits."""
    held = []
    for seed in range(40):
        rng = np.random.default_rng(seed)
        pairs = rng.normal([0.8, -0.4], [0.2, 0.4], (4, 2)).clip([0.1, -9], 9)
        fitted = make([fit_platt(*drawn(40, *pair, seed=100 * seed + k)) for k, pair in enumerate(pairs)])
        for at in (-2.0, 0.0, 2.0):
            low, high = fitted.band(at) or (0, 0)
            held += [low <= expit(slope * at + intercept) <= high for slope, intercept in pairs]
    assert np.mean(held) > 0.93
    assert np.mean(held) < 1, "a band that always holds is no band of 95 %"


def test_one_hospital_cannot_carry_the_median_away() -> None:
    fits = federation(5, 50, seed=6)
    wild = fits[0].model_copy(update={"slope": 80.0, "intercept": -60.0})
    kept, spoilt = middle([*fits[1:], wild]), middle(fits)
    assert abs(kept.slope - spoilt.slope) < 0.5
    assert np.diff(kept.band(1.0) or ())[0] < 0.6


@pytest.mark.parametrize("make", [pool, middle])
def test_without_a_fit_the_pool_is_as_it_is(make: Callable[[Sequence[Platt]], Platt]) -> None:
    assert make([]) == Platt()


@pytest.mark.parametrize("patients", [1, 12, 300])
def test_what_was_fitted_could_be_of_its_patients(patients: int) -> None:
    fit = fit_platt(*drawn(patients, 0.5, 1, seed=7))
    assert fit.could_be_of(patients)


def four_digits(fit: Platt) -> Platt:
    """As a hospital tells its fit: variances rounded up, the covariance towards zero."""
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
def test_a_fit_with_four_digits_could_be_of_its_patients_too(patients: int, spread: float) -> None:
    for seed, middle_logit in enumerate((0, -2, -10, 30)):
        rng = np.random.default_rng(seed)
        logits = (rng.normal(size=patients) * spread + middle_logit).astype(np.float32)
        fit = fit_platt(logits, (rng.random(patients) < 0.3).astype(np.float32))
        assert fit.could_be_of(patients) and four_digits(fit).could_be_of(patients)


@pytest.mark.slow
@pytest.mark.parametrize("make", [pool, middle])
@pytest.mark.parametrize("patients", [20, 60, 300])
def test_four_digits_are_enough_to_pool(make: Callable[[Sequence[Platt]], Platt], patients: int) -> None:
    """What they change is less than a hundredth of the band's width."""
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
def test_what_no_fit_to_so_few_patients_gives_is_known_as_such(covariance: tuple[float, float, float]) -> None:
    assert not Platt(covariance=covariance).could_be_of(20)


@pytest.mark.parametrize("patients", [20, 100])
def test_no_rounding_makes_a_few_patients_know_more_than_twice_as_much(patients: int) -> None:
    """Fits that are as sure of the intercept as three times as many patients could be."""
    sure = 1 / (3 * patients / 4 + 4)
    for of_slope in (1e-7, 1e-4, 0.01, 0.2):
        for correlation in (-0.999, -0.5, 0.0, 0.9):
            both = correlation * (of_slope * sure) ** 0.5
            # The intercept's information is that of the other variance given the slope.
            told = four_digits(Platt(covariance=(of_slope, both, sure)))
            assert not told.could_be_of(patients)
