"""Tests of combining batch-norm buffers: compared with PyTorch's buffers and with the pooled data."""

import numpy as np
import pytest
import torch

from federation.protocol.batch_norm import combine, combine_by_median, is_buffer, split


def site(data: np.ndarray, batches: int) -> dict[str, np.ndarray]:
    return {
        "norm.running_mean": data.mean(axis=0).astype(np.float32),
        "norm.running_var": data.var(axis=0).astype(np.float32),
        "norm.num_batches_tracked": np.asarray(batches, dtype=np.int64),
    }


def test_split_separates_exactly_the_pytorch_buffers():
    net = torch.nn.Sequential(
        torch.nn.Conv3d(1, 2, 3), torch.nn.BatchNorm3d(2), torch.nn.GroupNorm(1, 2), torch.nn.Linear(2, 1)
    )
    trainable, buffers = split(net.state_dict())
    assert set(trainable) == {name for name, _ in net.named_parameters()}
    assert set(buffers) == {name for name, _ in net.named_buffers()}


@pytest.mark.parametrize("name", ["running_variance", "my_running_var_head.weight", "mean"])
def test_names_that_only_resemble_a_buffer_are_trainable(name):
    assert not is_buffer(name)


def test_combined_moments_are_those_of_the_pooled_data():
    draw = np.random.default_rng(0)
    data = [draw.normal(shift, 1 + shift, (count, 4)) for shift, count in ((0, 30), (3, 50), (1, 200))]
    combined = combine([site(d, 7) for d in data], [30, 50, 200])
    pooled = np.concatenate(data)
    np.testing.assert_allclose(combined["norm.running_mean"], pooled.mean(axis=0), rtol=1e-5)
    np.testing.assert_allclose(combined["norm.running_var"], pooled.var(axis=0), rtol=1e-5)


def test_combined_variance_includes_the_spread_between_sites():
    """Each site has zero variance; the means are two units apart. A plain average of the variances would give 0."""
    buffers = combine([site(np.full((5, 1), -1.0), 1), site(np.full((5, 1), 1.0), 1)], [5, 5])
    assert buffers["norm.running_var"].item() == 1.0


def test_variances_never_become_negative_by_rounding():
    """With large means, the textbook form sum w (var + mean^2) - mean^2 cancels in single precision."""
    data = np.full((5, 3), 4096.1)
    combined = combine([site(data, 1), site(data, 1), site(data, 1)], [1, 3, 7])
    assert (combined["norm.running_var"] >= 0).all()
    np.testing.assert_allclose(combined["norm.running_var"], 0.0, atol=1e-6)


def test_counter_is_the_largest_and_stays_an_integer():
    sites = [site(np.ones((2, 1)), batches) for batches in (2**53 + 1, 3, 8)]
    counter = combine(sites, [1, 1, 1])["norm.num_batches_tracked"]
    assert counter == 2**53 + 1  # not representable in float64
    assert counter.dtype == np.int64
    assert counter.shape == ()


def test_buffers_of_a_single_site_are_unchanged():
    only = site(np.random.default_rng(1).normal(size=(9, 4)), 5)
    combined = combine([only], [33])
    for name, value in only.items():
        np.testing.assert_array_equal(combined[name], value)
        assert combined[name].dtype == value.dtype


# --- hostile sites -----------------------------------------------------------------------------------------


def drawn(number: int) -> dict[str, np.ndarray]:
    draw = np.random.default_rng(number)
    return site(draw.normal(draw.normal(), 1 + draw.uniform(), (50, 4)), 7)


HONEST = [drawn(number) for number in range(4)]


@pytest.mark.parametrize("value", [0.0, 1e30, -1e30])
def test_one_hostile_site_of_five_keeps_the_median_among_the_others(value):
    hostile = {
        "norm.running_mean": np.full(4, value, np.float32),
        "norm.running_var": np.full(4, abs(value), np.float32),
        "norm.num_batches_tracked": np.asarray(2**62),
    }
    combined = combine_by_median([*HONEST[:2], hostile, *HONEST[2:]])
    means = np.stack([s["norm.running_mean"] for s in HONEST])
    assert (combined["norm.running_mean"] >= means.min(axis=0)).all()
    assert (combined["norm.running_mean"] <= means.max(axis=0)).all()
    widest = max(float(s["norm.running_var"].max()) for s in HONEST) + float(np.ptp(means, axis=0).max()) ** 2
    narrowest = min(float(s["norm.running_var"].min()) for s in HONEST)
    assert (combined["norm.running_var"] >= narrowest).all()
    assert (combined["norm.running_var"] <= widest).all()
    assert combined["norm.num_batches_tracked"] == 7
    if value:  # the control: a plain mean follows the hostile site
        assert abs(combine([*HONEST, hostile], [1] * 5)["norm.running_mean"]).max() > 1e20


def test_median_of_identical_sites_is_that_site():
    combined = combine_by_median([HONEST[0]] * 3)
    for name, value in HONEST[0].items():
        np.testing.assert_array_equal(combined[name], value)
        assert (combined[name].dtype, combined[name].shape) == (value.dtype, value.shape)


def test_median_variance_includes_the_spread_between_sites():
    """Each of three sites has zero variance. The variance includes the distance between their means."""
    combined = combine_by_median([site(np.full((5, 1), shift), 1) for shift in (-1.0, 0.0, 1.0)])
    assert combined["norm.running_mean"].item() == 0.0
    assert combined["norm.running_var"].item() == 1.0
