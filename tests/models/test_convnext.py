"""The 3D ConvNeXt: what its activations receive, which the gateway's bounds presume, and what its norms leave out."""

import pytest
import torch
from torch import Tensor, nn

from models.network import SeverityNetwork, build_network
from models.network_settings import TABULAR, NetworkSettings


def made(norm: str = "batch", pooling: str = "") -> SeverityNetwork:
    content = {"architecture": "convnext", "widen_factor": 1 / 16, "norm": norm, "pooling": pooling}
    return build_network(NetworkSettings.model_validate(content), seed=1).train()


def scans(count: int = 4) -> Tensor:
    return torch.randn(count, 2, 24, 24, 24, generator=torch.Generator().manual_seed(0))


def received(network: SeverityNetwork) -> dict[str, Tensor]:
    """Return what each activation receives, shape (batch, channels, ...), by the name of the layer before it."""
    found: dict[str, Tensor] = {}
    hooks = [
        layer.register_forward_hook(lambda _, given, made, name=name: found.update({name: made.detach()}))
        for name, layer in network.named_modules()
        if name.endswith("conv2")
    ]
    with torch.no_grad():
        network(scans(), torch.zeros(4, TABULAR))
    for hook in hooks:
        hook.remove()
    return found


def test_mean_of_what_an_activation_receives_is_its_bias_whatever_the_weights() -> None:
    """So no sum of small shifts becomes a threshold that few patients exceed."""
    network = made()
    draws = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for weight in network.backbone.parameters():
            weight.copy_(3 * torch.randn(weight.shape, generator=draws) + 1)
    for name, values in received(network).items():
        bias = network.get_submodule(name).bias
        assert isinstance(bias, Tensor)
        mean, spread = values.transpose(0, 1).flatten(1).mean(dim=1), values.std()
        torch.testing.assert_close(mean, bias.detach(), atol=1e-3 * float(spread), rtol=1e-3)


@pytest.mark.parametrize("norm", ["batch", "group"])
def test_activations_receive_values_of_unit_variance_at_the_seed(norm: str) -> None:
    spreads = [float(values.std()) for values in received(made(norm)).values()]
    assert len(spreads) == 3 + 3 + 9 + 3 + 3
    assert min(spreads) > 0.5 and max(spreads) < 2


@pytest.mark.parametrize("norm", ["batch", "group"])
def test_only_layers_before_activations_have_biases_and_no_norm_has_weights(norm: str) -> None:
    backbone = made(norm).backbone
    vectors = {name for name, weight in backbone.named_parameters() if weight.ndim == 1}
    assert vectors and all(name.endswith("conv2.bias") for name in vectors)
    kind = nn.GroupNorm if norm == "group" else nn.BatchNorm3d
    assert sum(isinstance(layer, kind) for layer in backbone.modules()) == 21 + 2, "one in a block, first and last"


@pytest.mark.parametrize("norm", ["batch", "group"])
def test_a_map_of_one_place_keeps_its_features(norm: str) -> None:
    """MedNeXt's own norm, with a group for each channel, would make them zero."""
    network = made(norm).eval()
    small = torch.randn(2, 2, 16, 16, 16, generator=torch.Generator().manual_seed(0))
    one, other = network.of_scans(small).detach()
    assert not torch.allclose(one, other, atol=1e-3)
