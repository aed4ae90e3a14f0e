"""Attention over the places of a network's last maps, with the published networks by name."""

from pathlib import Path

import pytest
import torch
from pydantic import ValidationError

from models.network import SeverityNetwork, build_network
from models.network_settings import BLOCKS, TABULAR, WITH_MAPS, NetworkSettings
from models.pooling import PlaceAttention, shape_of_maps
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


# --- maps that are not pooled, in pretraining on hidden blocks ---------------------------------------------------


def hiding(architecture: str, norm: str = "batch") -> SeverityNetwork:
    content = {"architecture": architecture, "norm": norm, "widen_factor": 0.125, "outputs": "hidden_blocks"}
    return build_network(NetworkSettings.model_validate(content), seed=1)


@pytest.mark.parametrize("architecture", WITH_MAPS)
def test_head_of_a_masked_network_is_a_convolution_of_its_last_maps(architecture: str) -> None:
    network, usual = hiding(architecture), made(architecture, "mean")
    with torch.inference_mode():
        of_places = network.eval().of_scans(scans())
        torch.testing.assert_close(of_places.mean(dim=1), usual.eval().of_scans(scans()), rtol=1e-4, atol=1e-5)
        outputs = network(scans(), torch.zeros(3, TABULAR))
    maps = shape_of_maps(network, (24, 40, 40))
    assert outputs.shape == (3, maps[0] * maps[1] * maps[2], len(BLOCKS))
    assert of_places.shape[1:] == (outputs.shape[1], network.features)


@pytest.mark.parametrize("architecture", WITH_MAPS)
@pytest.mark.parametrize("norm", ["batch", "group"])
def test_masked_network_differs_from_the_usual_one_in_its_head_alone(architecture: str, norm: str) -> None:
    before, after = made(architecture, "mean", norm).state_dict(), hiding(architecture, norm).state_dict()
    assert list(before) == list(after)
    assert all(torch.equal(before[name], after[name]) for name in before if not name.startswith("head."))
    assert after["head.weight"].shape == (len(BLOCKS), before["head.weight"].shape[1])


def test_shape_of_the_maps_is_found_without_changing_the_network() -> None:
    network = hiding("resnet18").train()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    assert shape_of_maps(network, (40, 56, 56)) == (2, 2, 2)
    assert shape_of_maps(network, (160, 224, 224)) == (5, 7, 7)
    assert network.training and all(torch.equal(before[name], now) for name, now in network.state_dict().items())


@pytest.mark.parametrize(
    ("chosen", "why"),
    [
        ({"architecture": "resnet18_slices"}, "resnet18_slices does not have"),
        ({"architecture": "resnet18", "pooling": "gated"}, "cannot train the attention"),
        ({"architecture": "densenet121", "pooling": "attention"}, "cannot train the attention"),
        ({"architecture": "own:net", "code": "0" * 64}, "of this release"),
        ({"encoder": "0" * 64, "encoder_features": 8}, "of this release"),
    ],
)
def test_network_without_maps_of_its_own_cannot_be_pretrained_so(chosen: dict[str, object], why: str) -> None:
    with pytest.raises(ValidationError, match=why):
        NetworkSettings.model_validate({**chosen, "outputs": "hidden_blocks"})
