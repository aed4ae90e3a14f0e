"""Membership inference: it identifies memorised patients, and reports no leak where none exists."""

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from models import membership
from models.loss import masked_bce
from models.membership import FALSE_ALARMS, JOINT, attack_figures, attack_losses, control, infer_membership
from models.network_settings import LABELS, NetworkSettings

NAN = np.nan


@pytest.fixture(autouse=True)
def few_resamples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(membership, "BOOTSTRAPS", 100)


@pytest.mark.slow
@pytest.mark.parametrize("norm", ["batch", "group"])
def test_control_identifies_memorised_patients(norm: str) -> None:
    found = control(NetworkSettings.model_validate({"norm": norm}))
    assert found.holds and found.value >= 0.8


def test_untrained_network_fails_the_control(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(membership, "CONTROL_EPOCHS", 0)
    assert not control(NetworkSettings()).holds


def test_joint_loss_equals_training_loss_per_patient() -> None:
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 3, (6, 2)).astype(np.float32)
    targets = np.array([[0, 1], [1, NAN], [NAN, 0], [1, 1], [NAN, NAN], [0, 0]], dtype=np.float32)
    losses = membership.patient_losses(logits, targets)
    for patient in range(6):
        alone = masked_bce(torch.from_numpy(logits[[patient]]), torch.from_numpy(targets[[patient]]))
        if patient == 4:
            assert np.isnan(losses[JOINT][patient])
        else:
            assert losses[JOINT][patient] == pytest.approx(float(alone), rel=1e-5)
    assert np.isnan(losses["severe"]).tolist() == np.isnan(targets[:, 1]).tolist()


def test_attack_figures_match_manual_calculation() -> None:
    members = np.array([0.0, 0.1, 0.2, 0.5])
    others = np.linspace(0.15, 1.05, 10)  # 0.15, 0.25, ...: each is a tenth of the non-members
    auroc, strict, loose = attack_figures(members, others)
    assert strict == 0.5  # no non-member is below 0.15: no false alarm
    assert loose == 0.75  # one false alarm (0.15) is the allowed tenth
    assert auroc == pytest.approx((10 + 10 + 9 + 6) / 40)


def test_small_losses_indicate_members() -> None:
    low, high = np.linspace(0, 1, 20), np.linspace(2, 3, 20)
    assert attack_figures(low, high).tolist() == [1, 1, 1]
    assert attack_figures(high, low).tolist() == [0, 0, 0]


def test_equal_losses_reveal_no_membership() -> None:
    auroc, *hits = attack_figures(np.ones(20), np.ones(20))
    assert auroc == 0.5 and hits == [0, 0]


def losses(seed: int, count: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Draw losses of members and non-members from the same distribution."""
    rng = np.random.default_rng(seed)
    return rng.exponential(1, count), rng.exponential(1, count)


@pytest.mark.slow
def test_intervals_have_about_nominal_coverage() -> None:
    found = [attack_losses(*losses(seed, 50)).auroc for seed in range(20)]
    assert sum(interval.low < 0.5 < interval.high for interval in found) >= 16
    assert all(interval.low <= interval.value <= interval.high for interval in found)
    assert np.mean([interval.high - interval.low for interval in found]) < 0.35  # they are not too wide


def test_more_patients_narrow_the_intervals_and_results_repeat() -> None:
    wide, narrow = attack_losses(*losses(0, 30)), attack_losses(*losses(0, 300))
    assert wide == attack_losses(*losses(0, 30))
    for few, many in (
        (wide.auroc, narrow.auroc),
        (wide.tpr_at_10_percent_fpr, narrow.tpr_at_10_percent_fpr),
    ):
        assert many.high - many.low < few.high - few.low
    assert narrow.tpr_at_1_percent_fpr.low <= FALSE_ALARMS[0] <= narrow.tpr_at_1_percent_fpr.high


def test_loss_known_for_too_few_patients_is_omitted() -> None:
    logits = np.zeros((12, 2), dtype=np.float32)
    targets = np.zeros((12, 2), dtype=np.float32)
    targets[3:, 1] = NAN  # severity is known for three patients
    found = infer_membership((logits, targets), (logits, targets), min_patients=4)
    assert set(found) == {JOINT, "pcr_positive"}
    assert set(infer_membership((logits, targets), (logits, targets), min_patients=3)) == {JOINT, *LABELS}
    assert infer_membership((logits, targets), (logits[:3], targets[:3]), min_patients=4) == {}


def test_leak_of_one_label_shows_in_its_own_figures() -> None:
    rng = np.random.default_rng(0)
    targets = rng.integers(0, 2, (60, 2)).astype(np.float32)
    members = rng.normal(0, 1, (60, 2)).astype(np.float32)
    others = members.copy()
    members[:, 1] = 8 * (2 * targets[:, 1] - 1)  # confident and correct about the severity of members
    found = infer_membership((members, targets), (others, targets), min_patients=10)
    assert found["severe"].auroc.value > 0.95
    assert found["pcr_positive"].auroc.value == pytest.approx(0.5)
    assert found[JOINT].members == found[JOINT].others == 60
