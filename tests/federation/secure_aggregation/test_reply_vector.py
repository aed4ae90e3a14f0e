"""Replies as words: sums are exact, within bounds, for hospitals of any size."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from federation.secure_aggregation.fixed_point import WIDE_LIMIT, from_narrow, from_wide, to_narrow, to_wide
from federation.secure_aggregation.reply_vector import Reply, Settings, mean_of, vector
from tests.federation.secure_aggregation.rig import plain_mean, refused

SETTINGS = Settings(weights=4, channels=1, figures=("auroc",), patients=100, longest=1.0, sites=3)
REPLY = Reply(50, {"auroc": 0.5}, np.zeros(1), np.ones(1), [np.zeros(4)])


@given(st.lists(st.floats(-1e7, 1e7), min_size=1, max_size=30))
def test_wide_sums_are_exact_to_half_a_step_a_site(numbers: list[float]) -> None:
    total = np.sum([to_wide(np.array([number]), share=1 / len(numbers)) for number in numbers], axis=0, dtype=np.uint32)
    exact = sum(number / len(numbers) for number in numbers)
    assert from_wide(total, sites=len(numbers))[0] == pytest.approx(exact, abs=len(numbers) * 2.0**-34 + 1e-15 * 1e7)


@given(st.lists(st.floats(-2, 2), min_size=1, max_size=30))
def test_narrow_sums_do_not_overflow_and_are_cut_off_at_the_limit(numbers: list[float]) -> None:
    sites = len(numbers)
    words = [to_narrow(np.array([number]), limit=1.0, share=1 / sites, sites=sites) for number in numbers]
    total = np.sum(words, axis=0, dtype=np.uint32)
    exact = sum(max(-1.0, min(1.0, number)) / sites for number in numbers)
    assert from_narrow(total, limit=1.0, sites=sites)[0] == pytest.approx(exact, abs=sites * 2.0**-31)


@pytest.mark.parametrize("bad", [WIDE_LIMIT, -WIDE_LIMIT, np.nan, np.inf])
def test_numbers_that_cannot_be_summed_are_refused(bad: float) -> None:
    assert refused(lambda: to_wide(np.array([0.0, bad]), share=0.1)) == "E_SECAGG_RANGE"


@pytest.mark.parametrize("patients", [0, 101])
def test_weight_outside_the_study_is_refused(patients: int) -> None:
    assert refused(lambda: list(vector(replace(REPLY, patients=patients), SETTINGS))) == "E_SECAGG_WEIGHT"


@pytest.mark.parametrize(
    "wrong",
    [
        {"changes": [np.zeros(3)]},
        {"changes": [np.zeros(4), np.zeros(1)]},
        {"means": np.zeros(2), "variances": np.zeros(2)},
        {"figures": {"other": 1.0}},
    ],
)
def test_reply_of_other_lengths_is_an_error(wrong: dict) -> None:
    with pytest.raises(ValueError, match="settings"):
        list(vector(replace(REPLY, **wrong), SETTINGS))


def test_figure_that_some_hospitals_lack_is_the_mean_of_the_others() -> None:
    replies = [REPLY, replace(REPLY, patients=20, figures={}), replace(REPLY, patients=25, figures={"auroc": 0.8})]
    total = np.sum([np.concatenate(list(vector(reply, SETTINGS))) for reply in replies], axis=0, dtype=np.uint32)
    mean = mean_of(total, SETTINGS, 3)
    assert mean.patients == 95
    assert mean.figures["auroc"] == pytest.approx((50 * 0.5 + 25 * 0.8) / 75)
    nobody = np.concatenate(list(vector(replies[1], SETTINGS)))
    assert mean_of(nobody, SETTINGS, 1).figures == {}


@pytest.mark.parametrize("sites", [3, 10, 30])
def test_error_of_the_mean_is_below_a_millionth_of_the_update(tmp_path: Path, sites: int) -> None:
    """With hospitals of very different sizes, and a bound three times as long as the updates."""
    rng = np.random.default_rng(sites)
    common = rng.standard_normal(100_000)
    replies = [
        Reply(
            patients=int(10 ** rng.uniform(1.3, 3.5)),
            figures={},
            means=rng.normal(scale=10, size=8),
            variances=10 ** rng.uniform(-4, 3, size=8),
            changes=[(1e-3 * (common + rng.standard_normal(100_000))).astype(np.float32)],
        )
        for _ in range(sites)
    ]
    longest = 3 * max(float(np.linalg.norm(reply.changes[0])) for reply in replies)  # type: ignore[index]
    settings = Settings(
        weights=100_000,
        channels=8,
        figures=(),
        patients=2 * sum(reply.patients for reply in replies),  # some of them are not trained on
        longest=longest,
        sites=sites,
    )
    total = np.sum([np.concatenate(list(vector(reply, settings))) for reply in replies], axis=0, dtype=np.uint32)
    mean, plain = mean_of(total, settings, sites), plain_mean(replies)
    error = np.linalg.norm(mean.changes - plain["changes"]) / np.linalg.norm(plain["changes"])
    assert error < 1e-6
    np.testing.assert_allclose(mean.means, plain["means"], atol=1e-7)
    np.testing.assert_allclose(mean.variances, plain["variances"], rtol=1e-6, atol=1e-6)


def test_update_is_clipped_by_its_factor() -> None:
    reply = replace(REPLY, changes=[np.full(4, 0.4)], scale=0.5)
    total = np.concatenate(list(vector(reply, SETTINGS)))
    np.testing.assert_allclose(mean_of(total, SETTINGS, 1).changes, 0.2, atol=1e-8)


def test_sum_that_is_noise_is_refused() -> None:
    """Masks that do not cancel leave no plausible share."""
    noise = np.random.default_rng(1).integers(0, 2**32, SETTINGS.words, dtype=np.uint32)
    assert refused(lambda: mean_of(noise, SETTINGS, 3)) == "E_SECAGG_RANGE"
