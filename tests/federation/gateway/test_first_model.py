"""Limits of the distance of filters and channels from their values in the initial model of the seed."""

import numpy as np
import pytest
import torch

from federation.protocol.flat_weights import WEIGHTS, pack
from federation.protocol.study_config import StudyNetwork
from federation.protocol.tensor_bounds import reaches_of
from models.network import SeverityNetwork, build_network

USUAL = {"learning_rate": 0.05, "epochs": 2, "rounds": 20}


@pytest.fixture(scope="module")
def network() -> SeverityNetwork:
    return build_network(StudyNetwork(architecture="resnet10", widen_factor=1 / 16), seed=1)


def places(network: SeverityNetwork, name: str) -> range:
    """The positions of a tensor in the packed weights."""
    start = 0
    for other, weight in network.named_parameters():
        if other == name:
            return range(start, start + weight.numel())
        start += weight.numel()
    raise KeyError(name)


def test_pieces_cover_the_packed_weights_in_order(network: SeverityNetwork) -> None:
    (reaches,) = reaches_of(network, **USUAL).values()
    starts = [reach.start for reach in reaches]
    assert starts[0] == 0
    assert (np.diff(starts) > 0).all()
    assert starts[-1] < pack(network)[0][WEIGHTS].size


def test_filters_of_later_stages_stay_near_their_initial_values(network: SeverityNetwork) -> None:
    reaches = {reach.start: reach.farthest for reach in reaches_of(network, **USUAL)[WEIGHTS]}
    for stage in ("layer2", "layer3", "layer4"):
        name = f"backbone.{stage}.0.conv2.weight"
        filters = network.get_parameter(name).detach()
        span = places(network, name)
        for number, weights in enumerate(filters):
            length = float(weights.square().mean().sqrt())
            assert reaches[span.start + number * weights.numel()] == pytest.approx(0.85 * length, rel=1e-4)


def test_each_normalization_channel_has_its_own_limit(network: SeverityNetwork) -> None:
    reaches = {reach.start: reach.farthest for reach in reaches_of(network, **USUAL)[WEIGHTS]}
    span = places(network, "backbone.layer4.0.bn2.bias")
    assert {reaches[place] for place in span} == {0.4}


def test_faster_and_longer_studies_have_wider_limits(network: SeverityNetwork) -> None:
    usual = reaches_of(network, **USUAL)[WEIGHTS]
    faster = reaches_of(network, learning_rate=0.1, epochs=4, rounds=80)[WEIGHTS]
    slower = reaches_of(network, learning_rate=0.001, epochs=1, rounds=2)[WEIGHTS]
    assert [reach.farthest for reach in faster] == pytest.approx([8 * reach.farthest for reach in usual])
    assert slower == usual


def test_packed_weights_keep_the_order_of_the_parameters(network: SeverityNetwork) -> None:
    """`places` relies on this order."""
    packed = torch.cat([weight.detach().contiguous().flatten() for _, weight in network.named_parameters()])
    assert np.array_equal(pack(network)[0][WEIGHTS], packed.numpy())
