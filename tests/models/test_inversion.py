"""Gradient inversion: the attack reconstructs a scan where possible, and its measures are not biased."""

import copy
import math

import pytest
import torch
from torch import Tensor

from models import inversion
from models.attacks import Control
from models.inversion import (
    compare,
    control,
    invert,
    moments_misfit,
    seen_gradient,
    seen_update,
    watch_moments,
)
from models.loss import masked_bce
from models.network import SeverityNetwork, build_network
from models.network_settings import NetworkSettings

SMALL = NetworkSettings(architecture="resnet10", widen_factor=0.125)
SIDE = 16
KNOWN, SICK = torch.ones(4, 4), torch.ones(4, 2)


def scans(count: int, seed: int = 0) -> Tensor:
    return torch.rand((count, 2, SIDE, SIDE, SIDE), generator=torch.Generator().manual_seed(seed)) * 2 - 1


def one_step(network: SeverityNetwork, batch: Tensor, *, rate: float = 0.1) -> SeverityNetwork:
    """The network after a step of plain gradient descent, in training mode."""
    after = copy.deepcopy(network).train()
    masked_bce(after(batch, KNOWN), SICK).backward()
    with torch.no_grad():
        for parameter in after.parameters():
            assert parameter.grad is not None
            parameter.sub_(rate * parameter.grad)
    return after


@pytest.mark.slow
def test_control_reconstructs_the_scan() -> None:
    found = control()
    assert found.holds and found.value >= 30


def test_control_fails_with_too_few_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inversion, "CONTROL_STEPS", 2)
    assert not control().holds


def test_nan_value_fails_a_control() -> None:
    assert not Control(value=math.nan, needed=0.8).holds
    assert Control(value=0.8, needed=0.8).holds


def test_update_of_one_step_reveals_its_gradient() -> None:
    network = build_network(SMALL, seed=1).train()
    batch = scans(4)
    seen = seen_update(network, one_step(network, batch))
    raw = seen_gradient(copy.deepcopy(network), batch, KNOWN, SICK)
    assert torch.nn.functional.cosine_similarity(seen.gradient, raw.gradient, dim=0) > 0.999


def test_batch_norm_buffers_reveal_moments_of_the_batch() -> None:
    network = build_network(SMALL, seed=1).train()
    batch = scans(4)
    seen = seen_update(network, one_step(network, batch))
    with torch.no_grad():
        first = network.backbone.conv1(batch)
    mean, variance = seen.moments["backbone.bn1"]
    assert torch.allclose(mean, first.mean(dim=(0, 2, 3, 4)), atol=1e-5)
    assert torch.allclose(variance, first.var(dim=(0, 2, 3, 4)), rtol=1e-3)
    assert len(seen.moments) == sum(isinstance(m, torch.nn.BatchNorm3d) for m in network.modules())


def test_batch_norm_buffers_after_several_steps_reveal_mean_of_the_batches() -> None:
    network = build_network(SMALL, seed=1).train()
    batch = scans(4)
    after = one_step(one_step(network, batch, rate=0), batch, rate=0)
    twice, once = seen_update(network, after).moments, seen_update(network, one_step(network, batch)).moments
    for name, (mean, variance) in once.items():
        assert torch.allclose(twice[name][0], mean, atol=1e-4)
        assert torch.allclose(twice[name][1], variance, rtol=1e-2, atol=1e-4)


def test_group_norm_reveals_no_moments() -> None:
    network = build_network(SMALL.model_copy(update={"norm": "group"}), seed=1).train()
    assert seen_update(network, one_step(network, scans(4))).moments == {}


@pytest.mark.slow
@pytest.mark.parametrize("norm", ["batch", "group"])
def test_reconstruction_matches_gradient_better_with_more_steps_and_repeats(norm: str) -> None:
    network = build_network(SMALL.model_copy(update={"norm": norm}), seed=1).eval()
    seen = seen_gradient(network, scans(1), KNOWN[:1], SICK[:1])

    def draw(steps: int, start: int = 0) -> Tensor:
        return invert(network, seen, KNOWN[:1], SICK[:1], (SIDE, SIDE, SIDE), steps=steps, start=start)

    def agreement(drawn: Tensor) -> float:
        gradient = seen_gradient(network, drawn, KNOWN[:1], SICK[:1]).gradient
        return float(torch.nn.functional.cosine_similarity(gradient, seen.gradient, dim=0))

    drawn = draw(25)
    assert drawn.shape == (1, 2, SIDE, SIDE, SIDE) and drawn.abs().max() <= 1
    assert torch.equal(drawn, draw(25)) and not torch.equal(drawn, draw(25, start=1))
    assert agreement(drawn) > agreement(draw(1)) + 0.1


def test_start_with_moments_matches_the_buffers_better_and_keeps_the_network() -> None:
    network = build_network(SMALL, seed=1).train()
    before = copy.deepcopy(network.state_dict())
    seen = seen_update(network, one_step(network, scans(4)))

    def misfit(start: int) -> float:
        drawn = invert(network, seen, KNOWN, SICK, (SIDE, SIDE, SIDE), steps=15, start=start)
        watched = copy.deepcopy(network)
        found = watch_moments(watched, seen.moments)
        with torch.no_grad():
            watched(drawn, KNOWN)
        return float(moments_misfit(found, seen.moments))

    assert [bool(moments) for _, moments in inversion.STARTS] == [False, False, True]
    assert misfit(2) < 0.7 * misfit(1)
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())


def test_best_pair_is_found_in_any_order_and_if_mirrored() -> None:
    truth = scans(3)
    noisy = (truth + 0.2 * torch.randn(truth.shape, generator=torch.Generator().manual_seed(5)))[[2, 0]].flip(-1)
    found = compare(noisy, truth, torch.zeros(truth.shape[1:]))
    assert found.best_db == pytest.approx(20, abs=0.3)  # 10 log10(2**2 / 0.2**2)
    assert found.gain_db > 8


def test_perfect_reconstruction_has_high_psnr_and_mask_is_ignored() -> None:
    truth = scans(1)
    drawn = truth.clone()
    drawn[:, 1] = 0
    assert compare(drawn, truth, truth[0]).best_db > 100


def test_constant_image_has_no_gain() -> None:
    truth = scans(2)
    flat = truth[:, 0].mean(dim=(1, 2, 3))[:, None, None, None, None].expand_as(truth)
    assert compare(flat, truth, truth[0]).gain_db == pytest.approx(0, abs=0.01)


def test_reconstructed_scan_counts_rather_than_scan_of_low_contrast() -> None:
    """A scan of low contrast resembles any grey image. This must not hide the reconstruction of another scan."""
    truth = scans(2)
    truth[0] *= 0.01
    drawn = truth[[1]] + 0.3 * torch.randn((1, *truth.shape[1:]), generator=torch.Generator().manual_seed(6))
    found = compare(drawn, truth, torch.zeros(truth.shape[1:]))
    assert found.constant_db < 15 and found.gain_db > 5
    assert found.typical_db == pytest.approx(found.constant_db, abs=0.1)
