"""Membership inference: it finds what is there to be found, and says nothing of what is not."""

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from models import membership
from models.loss import masked_bce
from models.membership import FALSE_ALARMS, JOINT, attack_figures, attack_losses, control, infer_membership
from models.network import LABELS, NetworkSettings

NAN = np.nan


@pytest.fixture(autouse=True)
def few_resamples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(membership, "BOOTSTRAPS", 100)


@pytest.mark.slow
@pytest.mark.parametrize("norm", ["batch", "group"])
def test_the_control_finds_who_was_learnt_by_heart(norm: str) -> None:
    found = control(NetworkSettings.model_validate({"norm": norm}))
    assert found.holds and found.value >= 0.8


def test_a_network_that_learnt_nothing_fails_the_control(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(membership, "CONTROL_EPOCHS", 0)
    assert not control(NetworkSettings()).holds


def test_the_joint_loss_is_the_one_that_is_trained_on_patient_by_patient() -> None:
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


def test_figures_that_can_be_counted_by_hand() -> None:
    members = np.array([0.0, 0.1, 0.2, 0.5])
    others = np.linspace(0.15, 1.05, 10)  # 0.15, 0.25, ... : each a tenth
    auroc, strict, loose = attack_figures(members, others)
    assert strict == 0.5  # below 0.15 nobody else lies: no false alarm
    assert loose == 0.75  # 0.15 alone is the tenth that is allowed
    assert auroc == pytest.approx((10 + 10 + 9 + 6) / 40)


def test_small_losses_mean_members_and_not_the_other_way_round() -> None:
    low, high = np.linspace(0, 1, 20), np.linspace(2, 3, 20)
    assert attack_figures(low, high).tolist() == [1, 1, 1]
    assert attack_figures(high, low).tolist() == [0, 0, 0]


def test_equal_losses_tell_nothing() -> None:
    auroc, *hits = attack_figures(np.ones(20), np.ones(20))
    assert auroc == 0.5 and hits == [0, 0]


def losses(seed: int, count: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Of members and of others who do not differ."""
    rng = np.random.default_rng(seed)
    return rng.exponential(1, count), rng.exponential(1, count)


@pytest.mark.slow
def test_intervals_hold_the_truth_about_as_often_as_they_say() -> None:
    found = [attack_losses(*losses(seed, 50)).auroc for seed in range(20)]
    assert sum(interval.low < 0.5 < interval.high for interval in found) >= 16
    assert all(interval.low <= interval.value <= interval.high for interval in found)
    assert np.mean([interval.high - interval.low for interval in found]) < 0.35  # and are no wider than they must


def test_more_patients_narrow_the_intervals_and_the_same_ones_give_the_same() -> None:
    wide, narrow = attack_losses(*losses(0, 30)), attack_losses(*losses(0, 300))
    assert wide == attack_losses(*losses(0, 30))
    for few, many in (
        (wide.auroc, narrow.auroc),
        (wide.tpr_at_10_percent_fpr, narrow.tpr_at_10_percent_fpr),
    ):
        assert many.high - many.low < few.high - few.low
    assert narrow.tpr_at_1_percent_fpr.low <= FALSE_ALARMS[0] <= narrow.tpr_at_1_percent_fpr.high


def test_a_loss_known_of_too_few_is_left_out() -> None:
    logits = np.zeros((12, 2), dtype=np.float32)
    targets = np.zeros((12, 2), dtype=np.float32)
    targets[3:, 1] = NAN  # severity is known of three
    found = infer_membership((logits, targets), (logits, targets), min_patients=4)
    assert set(found) == {JOINT, "pcr_positive"}
    assert set(infer_membership((logits, targets), (logits, targets), min_patients=3)) == {JOINT, *LABELS}
    assert infer_membership((logits, targets), (logits[:3], targets[:3]), min_patients=4) == {}


def test_a_leak_of_one_label_shows_in_its_row() -> None:
    rng = np.random.default_rng(0)
    targets = rng.integers(0, 2, (60, 2)).astype(np.float32)
    members = rng.normal(0, 1, (60, 2)).astype(np.float32)
    others = members.copy()
    members[:, 1] = 8 * (2 * targets[:, 1] - 1)  # sure, and right, about the members' severity
    found = infer_membership((members, targets), (others, targets), min_patients=10)
    assert found["severe"].auroc.value > 0.95
    assert found["pcr_positive"].auroc.value == pytest.approx(0.5)
    assert found[JOINT].members == found[JOINT].others == 60
