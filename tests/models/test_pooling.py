"""Attention over the places of a network's last maps, with the published networks by name."""

from pathlib import Path

import pytest
import torch

from models.network import SeverityNetwork, build_network
from models.network_settings import TABULAR, NetworkSettings
from models.pooling import PlaceAttention
from models.release import load_release, save_release
from pipeline.training.private_training import hook, patient_losses
from tests.helpers.descriptions import description

NAMES = ("resnet18", "densenet121", "seresnet50", "convnext")


def made(architecture: str, pooling: str = "", norm: str = "batch") -> SeverityNetwork:
    content = {"architecture": architecture, "pooling": pooling, "norm": norm, "widen_factor": 0.125}
    return build_network(NetworkSettings.model_validate(content), seed=1)


def scans(count: int = 3) -> torch.Tensor:
    return torch.randn(count, 2, 24, 40, 40, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("is_gated", [False, True])
def test_pooled_features_are_the_weighted_mean_of_places(is_gated: bool) -> None:
    pooling, maps = PlaceAttention(6, is_gated=is_gated), torch.randn(2, 6, 2, 3, 4)
    places = maps.reshape(2, 6, 24)
    with torch.inference_mode():
        weights = pooling.attention(places.transpose(1, 2))
        torch.testing.assert_close(weights.sum(dim=1), torch.ones(2))
        torch.testing.assert_close(pooling(maps), (places * weights[:, None]).sum(dim=2))


@pytest.mark.parametrize("architecture", NAMES)
def test_pooling_adds_its_own_layers_and_changes_no_other(architecture: str) -> None:
    plain, attended, gated = (set(made(architecture, how).state_dict()) for how in ("mean", "attention", "gated"))
    assert plain == set(made(architecture).state_dict())
    assert {name.rpartition("backbone.")[2].split(".")[-1] for name in attended - plain} == {
        "importance",
        "weight",
        "bias",
    }
    assert len(attended - plain) == 3 and len(gated - attended) == 2 and plain < attended < gated


@pytest.mark.parametrize("pooling", ["", "attention", "gated"])
@pytest.mark.parametrize("architecture", NAMES)
def test_each_patient_has_a_gradient_of_their_own(architecture: str, pooling: str) -> None:
    """In double precision, because group norm over few values enlarges the rounding of float32."""
    targets = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]]).double()
    known, given = torch.zeros(3, TABULAR).double(), scans().double()
    network = made(architecture, pooling, "group").train().double()
    patient_losses(hook(network)(given, known).double(), targets).sum().backward()
    found = torch.cat([parameter.grad_sample.flatten(1) for parameter in network.parameters()], dim=1)
    alone = made(architecture, pooling, "group").train().double()
    patient_losses(alone(given[1:2], known[1:2]).double(), targets[1:2]).sum().backward()
    expected = torch.cat([p.grad.flatten() for p in alone.parameters() if p.grad is not None])
    torch.testing.assert_close(found[1], expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max()))


@pytest.mark.parametrize("pooling", ["", "gated"])
@pytest.mark.parametrize("architecture", NAMES)
def test_release_gives_equal_output_and_card_names_pooling(tmp_path: Path, architecture: str, pooling: str) -> None:
    network = made(architecture, pooling).eval()
    settings = NetworkSettings.model_validate({"architecture": architecture, "pooling": pooling, "widen_factor": 0.125})
    save_release(tmp_path, network, description(network=settings))
    with torch.inference_mode():
        before, after = (n(scans(), torch.ones(3, TABULAR)) for n in (network, load_release(tmp_path).network))
    assert torch.equal(before, after)
    card = (tmp_path / "card.md").read_text()
    assert f"3D {architecture}" in card
    assert ("gated pooling" in card) == bool(pooling)


@pytest.mark.parametrize("architecture", NAMES)
@pytest.mark.parametrize("side", [5, 16])
def test_small_grids_are_possible(architecture: str, side: int) -> None:
    logits = made(architecture, "gated").eval()(torch.zeros(1, 2, side, side + 1, side), torch.zeros(1, TABULAR))
    assert torch.isfinite(logits).all()
