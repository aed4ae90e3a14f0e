"""EfficientNet-B0 on slices: the published layers, and nothing that depends on chance or on one size of image."""

import pytest
import torch
from torch import nn

from models.efficientnet import efficientnet_b0
from models.network import build_network
from models.network_settings import TABULAR, NetworkSettings

SMALL = NetworkSettings(architecture="efficientnet_b0_slices", widen_factor=1 / 16)


def test_layers_have_as_many_weights_as_published() -> None:
    """The paper's B0 has 5.3 million, with a layer of 1280 features, its norm, and a classifier of 1000 classes."""
    layers, features = efficientnet_b0(3, 1.0)
    assert features == 320
    left_out = features * 1280 + 2 * 1280 + 1000 * (1280 + 1)
    assert sum(weight.numel() for weight in layers.parameters()) + left_out == 5_288_548


def test_training_draws_no_random_numbers() -> None:
    network = build_network(SMALL, seed=1).train()
    scans = torch.randn(2, 2, 3, 32, 28, generator=torch.Generator().manual_seed(0))
    before = torch.random.get_rng_state()
    once, again = (network(scans, torch.zeros(2, TABULAR)) for _ in range(2))
    assert torch.equal(once, again) and torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize("side", [1, 5, 16, 33])
def test_images_of_any_size_are_possible(side: int) -> None:
    layers, features = efficientnet_b0(2, 1 / 16)
    assert layers.eval()(torch.zeros(1, 2, side, side + 1)).shape == (1, features)


def test_mirrored_images_have_the_features_of_mirrored_filters() -> None:
    """Padding is equal on both sides; MONAI's, for images of even size, is not."""
    layers, _ = efficientnet_b0(2, 1 / 16)
    layers.eval()
    images = torch.randn(2, 2, 33, 33, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        before = layers(images)
        for layer in layers.modules():
            if isinstance(layer, nn.Conv2d):
                layer.weight.copy_(layer.weight.flip(3))
        torch.testing.assert_close(layers(images.flip(3)), before, rtol=1e-4, atol=1e-5)


def test_activations_follow_a_norm_except_in_gates_of_channels() -> None:
    """The gateway's bounds on shifts presume it."""
    layers, _ = efficientnet_b0(2, 1 / 16)
    names = {type(layer).__name__ for layer in layers.modules() if not list(layer.children())}
    assert names == {"Conv2d", "BatchNorm2d", "SiLU", "Identity", "AdaptiveAvgPool2d", "Flatten"}
    biases = [
        name for name, _ in layers.named_parameters() if name.endswith(("conv.bias", "reduce.bias", "expand.bias"))
    ]
    assert len(biases) == 2 * 16 and all("_se_" in name for name in biases)
