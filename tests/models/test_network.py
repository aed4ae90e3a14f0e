"""The network: its inputs, its outputs, and reproducible weights from a seed."""

import pytest
import torch
from pydantic import ValidationError

from models.network import HEAD_RMS, build_network
from models.network_settings import ARCHITECTURES, LABELS, TABULAR, NetworkSettings, tabular

SMALL = NetworkSettings(architecture="resnet10", widen_factor=0.125)


@pytest.mark.parametrize(
    ("age_years", "sex", "numbers"),
    [
        (60.0, "F", [0.0, 1.0, -1.0, 1.0]),
        (80.0, "M", [1.0, 1.0, 1.0, 1.0]),
        (None, "M", [0.0, 0.0, 1.0, 1.0]),
        (40.0, None, [-1.0, 1.0, 0.0, 0.0]),
        (None, "O", [0.0, 0.0, 0.0, 0.0]),
    ],
)
def test_age_and_sex_are_encoded_as_numbers(age_years: float | None, sex: str | None, numbers: list[float]) -> None:
    assert tabular(age_years, sex) == numbers
    assert len(numbers) == TABULAR


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_network_returns_one_logit_per_label(architecture: str) -> None:
    network = build_network(NetworkSettings.model_validate({"architecture": architecture}), seed=1).eval()
    logits = network(torch.zeros(3, 2, 24, 32, 28), torch.zeros(3, TABULAR))
    assert logits.shape == (3, len(LABELS))
    assert logits.dtype == torch.float32
    assert torch.isfinite(logits).all()


def test_scan_mask_age_and_sex_all_affect_the_output() -> None:
    network = build_network(SMALL, seed=1).eval()
    scan = torch.randn(1, 2, 16, 16, 16, generator=torch.Generator().manual_seed(0))
    known = torch.ones(1, TABULAR)
    with torch.inference_mode():
        base = network(scan, known)
        for channel in (0, 1):
            other = scan.clone()
            other[:, channel] = 0
            assert not torch.allclose(network(other, known), base, atol=1e-4)
        assert not torch.allclose(network(scan, -known), base, atol=1e-4)


def test_output_does_not_depend_on_other_patients_of_the_batch() -> None:
    network = build_network(SMALL, seed=1).eval()
    scans = torch.randn(4, 2, 16, 16, 16, generator=torch.Generator().manual_seed(0))
    known = torch.zeros(4, TABULAR)
    with torch.inference_mode():
        together = network(scans, known)
        alone = torch.cat([network(scans[i : i + 1], known[i : i + 1]) for i in range(4)])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-5)


def test_seed_determines_the_weights_and_keeps_the_global_random_state() -> None:
    before = torch.random.get_rng_state()
    first, again, other = (build_network(SMALL, seed=seed).state_dict() for seed in (1, 1, 2))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["head.weight"], other["head.weight"])
    assert not torch.equal(first["backbone.conv1.weight"], other["backbone.conv1.weight"])


@pytest.mark.parametrize(
    "wrong",
    [
        {"architecture": "resnet50"},
        {"widen_factor": 0},
        {"widen_factor": -1},
        {"widen_factor": float("nan")},
        {"widen_factor": 1e9},
        {"tabular_features": 0},
        {"depth": 3},
    ],
    ids=str,
)
def test_invalid_network_settings_are_rejected(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        NetworkSettings.model_validate(wrong)


# --- age and sex in networks of a study ---------------------------------------------------------------------

FIXED = NetworkSettings.model_validate({**SMALL.model_dump(), "tabular": "fixed", "age_band_years": 5})


def test_ages_of_one_band_give_the_same_output():
    network = build_network(FIXED, seed=1).eval()
    scan = torch.zeros(4, 2, 16, 16, 16)
    ages = torch.tensor([tabular(age, "F") for age in (65, 69, 70, None)])
    with torch.no_grad():
        first, same, other, unknown = network(scan, ages)
    assert torch.equal(first, same)
    assert not torch.equal(first, other)
    assert not torch.equal(unknown, network(scan[:1], torch.tensor([tabular(60, "F")]))[0])


def test_fixed_features_are_equal_for_every_seed_and_not_trained():
    one, two = (build_network(FIXED, seed=seed) for seed in (1, 2))
    for mine, other in zip(one.tabular.parameters(), two.tabular.parameters(), strict=True):
        assert torch.equal(mine, other)
        assert not mine.requires_grad


def test_each_fixed_feature_is_active_for_many_ages():
    network = build_network(FIXED.model_copy(update={"tabular_features": 16}), seed=1)
    everybody = torch.tensor([tabular(age, sex) for age in range(20, 96) for sex in "FM"])
    active = (network.tabular(everybody) > 0).float().mean(dim=0)
    assert (active >= 0.3).all()


def test_hold_short_bounds_weights_of_age_and_sex_only():
    network = build_network(FIXED, seed=1)
    with torch.no_grad():
        network.head.weight.fill_(3.0)
        network.head.weight[1, network.features :] = 0.1
    network.hold_short()
    long, short = network.head.weight.detach()[:, network.features :]
    assert long.square().mean().sqrt() == pytest.approx(HEAD_RMS)
    assert torch.equal(short, torch.full_like(short, 0.1))
    assert (network.head.weight[:, : network.features] == 3.0).all()


def test_hold_short_does_not_bound_learnt_features():
    network = build_network(SMALL, seed=1)
    with torch.no_grad():
        network.head.weight.fill_(3.0)
    network.hold_short()
    assert (network.head.weight == 3.0).all()
