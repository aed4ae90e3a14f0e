"""Tests of packing a network into flat arrays for transfer."""

import numpy as np
import pytest
import torch

from federation.protocol.batch_norm import is_counter, is_variance
from federation.protocol.flat_weights import pack, unpack
from models.network import build_network
from models.network_settings import NetworkSettings

SETTINGS = NetworkSettings(architecture="resnet10", widen_factor=0.125)


def test_unpacked_network_equals_the_packed_one():
    sent, received = build_network(SETTINGS, seed=1), build_network(SETTINGS, seed=2)
    arrays, buffers = pack(sent)
    unpack(received, arrays, buffers)
    for name, tensor in sent.state_dict().items():
        assert torch.equal(tensor, received.state_dict()[name]), name


def test_pack_gives_one_weight_array_and_one_array_per_kind_of_buffer():
    arrays, buffers = pack(build_network(SETTINGS, seed=1))
    assert list(arrays) == ["weights"]
    assert len(buffers) == 3
    assert sum(map(is_variance, buffers)) == 1
    assert sum(map(is_counter, buffers)) == 1
    assert all(array.ndim == 1 for array in (*arrays.values(), *buffers.values()))


def test_packed_arrays_do_not_share_memory_with_the_network():
    network = build_network(SETTINGS, seed=1)
    arrays, _ = pack(network)
    before = arrays["weights"].copy()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(1)
    np.testing.assert_array_equal(arrays["weights"], before)


@pytest.mark.parametrize("change", [lambda a: a[:-1], lambda a: np.append(a, a[:1])])
def test_array_of_another_length_is_refused(change):
    network = build_network(SETTINGS, seed=1)
    arrays, buffers = pack(network)
    with pytest.raises((ValueError, RuntimeError)):
        unpack(network, {"weights": change(arrays["weights"])}, buffers)
