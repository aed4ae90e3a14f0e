"""The masked loss, compared with values calculated by hand."""

import math

import pytest
import torch

from models.loss import masked_bce, patient_losses

NAN = math.nan


def test_loss_matches_manual_calculation() -> None:
    """-log sigmoid(0) = log 2; -log sigmoid(2) = log(1 + exp(-2)); -log(1 - sigmoid(-1)) = log(1 + exp(-1))."""
    logits = torch.tensor([[0.0, 2.0], [-1.0, 2.0]])
    targets = torch.tensor([[1.0, 1.0], [0.0, 1.0]])
    first = (math.log(2) + math.log(1 + math.exp(-1))) / 2
    second = math.log(1 + math.exp(-2))
    assert masked_bce(logits, targets).item() == pytest.approx((first + second) / 2, abs=1e-6)


def test_each_label_has_equal_weight_whatever_its_number_of_known_values() -> None:
    logits = torch.tensor([[0.0, 5.0], [0.0, 0.0], [0.0, 0.0], [0.0, 0.0]])
    targets = torch.tensor([[1.0, 0.0], [0.0, NAN], [1.0, NAN], [0.0, NAN]])
    expected = (math.log(2) + math.log(1 + math.exp(5))) / 2
    assert masked_bce(logits, targets).item() == pytest.approx(expected, abs=1e-6)


def test_label_without_known_values_adds_no_loss() -> None:
    logits = torch.tensor([[0.0, 9.0], [0.0, -9.0]])
    targets = torch.tensor([[1.0, NAN], [0.0, NAN]])
    assert masked_bce(logits, targets).item() == pytest.approx(math.log(2), abs=1e-6)


def test_missing_labels_give_no_gradient() -> None:
    logits = torch.tensor([[0.5, 1.0], [2.0, -1.0]], requires_grad=True)
    masked_bce(logits, torch.tensor([[1.0, NAN], [NAN, 0.0]])).backward()
    assert logits.grad is not None
    assert logits.grad[0, 1] == 0 and logits.grad[1, 0] == 0
    # d/dz BCE = sigmoid(z) - y; one patient with a known value per label, two labels.
    assert logits.grad[0, 0].item() == pytest.approx((1 / (1 + math.exp(-0.5)) - 1) / 2, abs=1e-6)
    assert logits.grad[1, 1].item() == pytest.approx(1 / (1 + math.exp(1)) / 2, abs=1e-6)


def test_loss_and_gradient_are_zero_without_any_label() -> None:
    logits = torch.tensor([[3.0, -4.0], [100.0, 0.0]], requires_grad=True)
    loss = masked_bce(logits, torch.full((2, 2), NAN))
    loss.backward()
    assert loss.item() == 0
    assert logits.grad is not None and torch.equal(logits.grad, torch.zeros(2, 2))


def test_extreme_logits_stay_finite() -> None:
    logits = torch.tensor([[1e4, -1e4]], requires_grad=True)
    loss = masked_bce(logits, torch.tensor([[0.0, 1.0]]))
    loss.backward()
    assert loss.item() == pytest.approx(1e4)
    assert logits.grad is not None and torch.isfinite(logits.grad).all()


def test_loss_of_a_patient_is_that_of_a_batch_of_one() -> None:
    logits = torch.tensor([[0.5, 1.0], [2.0, -1.0], [3.0, 0.0]])
    targets = torch.tensor([[1.0, NAN], [0.0, 1.0], [NAN, NAN]])
    single = torch.stack([masked_bce(logits[[row]], targets[[row]]) for row in range(3)])
    torch.testing.assert_close(patient_losses(logits, targets), single)
    assert single[2] == 0
