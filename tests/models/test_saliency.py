"""Saliency maps point to the planted lesion, depend on the weights, and do not change the network."""

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.stats import spearmanr

from models.network import SeverityNetwork, build_network
from models.network_settings import ARCHITECTURES, TABULAR, NetworkSettings
from models.saliency import attributions, baseline, saliency
from tests.models.planted import SHAPE, Planted, learnt, plant

SMALL = NetworkSettings(architecture="resnet10", widen_factor=0.125)
UNKNOWN = torch.zeros(TABULAR)


@pytest.fixture(scope="module")
def network() -> SeverityNetwork:
    return learnt(SMALL, steps=60)


@pytest.fixture(scope="module")
def ill() -> list[Planted]:
    rng = np.random.default_rng(99)  # not the seed of the training scans
    return [plant(rng, with_lesion=True) for _ in range(20)]


def hits(maps: list[NDArray[np.float32]], ill: list[Planted]) -> float:
    """The pointing game (Zhang et al., IJCV 2018): fraction of maps whose maximum is on the lesion."""
    return float(np.mean([case.lesion.flat[found.argmax()] for found, case in zip(maps, ill, strict=True)]))


@pytest.mark.slow
def test_map_points_to_the_lesion_not_to_the_densest_structure(network: SeverityNetwork, ill: list[Planted]) -> None:
    found = [saliency(network, case.scan, UNKNOWN, 1) for case in ill]
    densest = [(case.scan - baseline(case.scan))[0].numpy() for case in ill]
    assert hits(densest, ill) <= 0.2, "density alone must not be enough"
    assert hits(found, ill) >= 0.9
    energy = np.mean([each[case.lesion].sum() / each.sum() for each, case in zip(found, ill, strict=True)])
    share = np.mean([case.lesion.sum() / float(case.scan[1].sum()) for case in ill])
    assert energy > 5 * share


@pytest.mark.slow
def test_map_depends_on_the_weights(network: SeverityNetwork, ill: list[Planted]) -> None:
    """Sanity check with random weights (Adebayo et al., NeurIPS 2018), in the head only and in all layers."""
    head_alone, everything = (learnt_copy(network), build_network(SMALL, seed=7).eval())
    torch.nn.init.normal_(head_alone.head.weight, std=0.1, generator=torch.Generator().manual_seed(1))
    for other in (head_alone, everything):
        alike = []
        for case in ill:
            inside = case.scan[1].numpy() > 0.5
            ours, theirs = (attributions(each, case.scan, UNKNOWN, 1).numpy() for each in (network, other))
            alike.append(abs(spearmanr(ours[inside], theirs[inside]).statistic))
        assert np.mean(alike) < 0.5
    assert hits([saliency(everything, case.scan, UNKNOWN, 1) for case in ill], ill) < 0.8


def learnt_copy(network: SeverityNetwork) -> SeverityNetwork:
    copied = build_network(SMALL, seed=0).eval()
    copied.load_state_dict(network.state_dict())
    return copied


def test_attributions_sum_to_the_logit_difference_from_the_baseline(
    network: SeverityNetwork, ill: list[Planted]
) -> None:
    for case in ill[:5]:
        with torch.inference_mode():
            both = network(torch.stack([case.scan, baseline(case.scan)]), UNKNOWN.expand(2, -1))
        for label in (0, 1):
            rise = float(both[0, label] - both[1, label])
            assert abs(rise) > 1
            assert float(attributions(network, case.scan, UNKNOWN, label).sum()) == pytest.approx(rise, rel=0.25)


def test_baseline_removes_dense_voxels_in_the_lungs_only(ill: list[Planted]) -> None:
    scan = ill[0].scan
    healthy = baseline(scan)
    lungs = scan[1] > 0.5
    assert torch.equal(healthy[1], scan[1])
    assert torch.equal(healthy[0][~lungs], scan[0][~lungs])
    assert float(healthy[0][lungs].max()) == pytest.approx(float(torch.quantile(scan[0][lungs], 0.1)), abs=1e-6)
    aerated = scan[0] < torch.quantile(scan[0][lungs], 0.1)
    torch.testing.assert_close(healthy[0][aerated], scan[0][aerated])


def test_map_has_expected_shape_and_range_and_repeats(network: SeverityNetwork, ill: list[Planted]) -> None:
    found = saliency(network, ill[0].scan, UNKNOWN, 0)
    assert found.shape == SHAPE
    assert found.dtype == np.float32
    assert found.min() == 0 and found.max() == 1
    assert not found[ill[0].scan[1].numpy() < 0.5].any()
    np.testing.assert_array_equal(saliency(network, ill[0].scan, UNKNOWN, 0), found)


def test_saliency_does_not_change_the_network_or_the_scan(network: SeverityNetwork, ill: list[Planted]) -> None:
    frozen = learnt_copy(network)
    frozen.head.weight.requires_grad_(False)
    frozen.head.bias.grad = torch.ones(2)
    needs = [parameter.requires_grad for parameter in frozen.parameters()]
    before = {name: tensor.clone() for name, tensor in frozen.state_dict().items()}
    scan = ill[0].scan.clone()
    saliency(frozen, scan, UNKNOWN, 1)
    assert torch.equal(scan, ill[0].scan) and not scan.requires_grad
    assert all(torch.equal(tensor, before[name]) for name, tensor in frozen.state_dict().items())
    assert [parameter.requires_grad for parameter in frozen.parameters()] == needs
    assert torch.equal(frozen.head.bias.grad, torch.ones(2))
    assert all(p.grad is None for name, p in frozen.named_parameters() if name != "head.bias")
    assert not frozen.training


def test_network_in_training_mode_is_rejected(ill: list[Planted]) -> None:
    with pytest.raises(ValueError, match="evaluation mode"):
        saliency(build_network(SMALL, seed=0).train(), ill[0].scan, UNKNOWN, 1)


def test_saliency_works_with_gradients_disabled(network: SeverityNetwork, ill: list[Planted]) -> None:
    expected = saliency(network, ill[0].scan, UNKNOWN, 1)
    for off in (torch.no_grad, torch.inference_mode):
        with off():
            scan, known = ill[0].scan + 0, UNKNOWN + 0  # these tensors are created with gradients disabled
            np.testing.assert_array_equal(saliency(network, scan, known, 1), expected)


@pytest.mark.parametrize("lungs", [0.0, 1.0], ids=["no lungs", "nothing dense in them"])
def test_map_is_empty_without_evidence_for_the_label(network: SeverityNetwork, lungs: float) -> None:
    scan = torch.stack([torch.full(SHAPE, -0.85), torch.full(SHAPE, lungs)])
    assert not saliency(network, scan, UNKNOWN, 1).any()


@pytest.mark.parametrize("norm", ["batch", "group"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_architecture_has_a_map(architecture: str, norm: str, ill: list[Planted]) -> None:
    settings = NetworkSettings.model_validate({"architecture": architecture, "widen_factor": 1 / 16, "norm": norm})
    found = saliency(build_network(settings, seed=1).eval(), ill[0].scan, UNKNOWN, 0)
    assert found.shape == SHAPE and found.max() == 1
