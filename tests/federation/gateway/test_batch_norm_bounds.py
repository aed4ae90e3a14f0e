"""Batch-norm buffers leave only if a round of training can produce them. Buffers of real training always pass."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from federation.gateway.batch_norm_bounds import MAX_GROWTH, MOMENTUM, could_follow, steps_of_round
from models.network import build_network
from models.network_settings import ARCHITECTURES, NetworkSettings
from pipeline.training.train import epoch_batches


@given(st.integers(2, 300), st.integers(2, 40), st.integers(1, 4), st.integers(0, 30))
def test_steps_of_a_round_equal_those_of_training(patients: int, batch_size: int, epochs: int, steps: int) -> None:
    rng = np.random.default_rng(0)
    made = [len(epoch_batches(patients, batch_size, steps, rng)) for _ in range(1 if steps else epochs)]
    assert steps_of_round(patients, batch_size=batch_size, epochs=epochs, steps=steps) == sum(made)


def test_all_networks_use_the_momentum_of_the_bounds() -> None:
    for architecture, widen in itertools.product(ARCHITECTURES, (0.0625, 0.25)):
        network = build_network(NetworkSettings(architecture=architecture, widen_factor=widen), seed=1)  # type: ignore[arg-type]
        norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d | nn.BatchNorm3d)]
        assert norms and all(norm.momentum == MOMENTUM and norm.track_running_stats for norm in norms)


@pytest.mark.parametrize("steps", [1, 2, 7, 40, 200])
@pytest.mark.parametrize("scale", [1e-4, 1.0, 30.0])
def test_buffers_of_a_real_layer_pass(steps: int, scale: float) -> None:
    """Starts with PyTorch's initial values and continues from the results. Some channels are always zero."""
    generator = torch.Generator().manual_seed(steps)
    norm = nn.BatchNorm1d(50)
    offsets = torch.randn(50, generator=generator) * scale
    loud = (torch.arange(50) % 5 > 0).float()
    for _ in range(3):
        old = [tensor.numpy().copy() for tensor in (norm.running_mean, norm.running_var)]
        for _ in range(steps):
            norm((torch.randn(8, 50, generator=generator) * scale + offsets) * loud)
        new = [tensor.numpy().copy() for tensor in (norm.running_mean, norm.running_var)]
        assert could_follow(*new, *old, steps=steps)


ZERO, ONE = np.zeros(4, np.float32), np.ones(4, np.float32)


@pytest.mark.parametrize(
    ("mean", "variance", "passes"),
    [
        (0.0, 1.0, True),
        (100.0, 1.0, True),
        (0.0, MAX_GROWTH, True),
        (0.0, 1.01 * MAX_GROWTH, False),
        (-1.01 * MAX_GROWTH**0.5, 1.0, False),
        (0.0, 3e38, False),
        (1e32, 1.0, False),
        (-1e32, 1.0, False),
        (0.0, 0.9**8, True),
        (0.0, 0.9**8 * 0.99, False),
        (0.0, 0.0, False),
        (4401728395566.0, 1.0, False),
    ],
)
def test_single_value_outside_the_bounds_is_found(mean: float, variance: float, passes: bool) -> None:
    means, variances = ZERO.copy(), ONE.copy()
    means[2], variances[2] = mean, variance
    assert could_follow(means, variances, ZERO, ONE, steps=8) == passes


def test_channel_that_was_zero_may_become_active_within_a_limit() -> None:
    silent = np.full(4, 1e-30, np.float32)
    assert could_follow(ZERO, ONE * 100, ZERO, silent, steps=8)
    assert not could_follow(ZERO, ONE * 1e3, ZERO, silent, steps=8)
