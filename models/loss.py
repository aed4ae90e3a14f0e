"""Computes the loss for two labels, each of which may be missing, and those of pretraining."""

import torch
import torch.nn.functional as F
from torch import Tensor

MEASURE_REACH = 4.0  # a measure's estimate lies between -4 and 4


def masked_bce(logits: Tensor, targets: Tensor, *, batch: Tensor | None = None) -> Tensor:
    """Return the mean binary cross-entropy over known labels, with equal weight for each label.

    `logits`, `targets`: (batch, labels); a missing target is NaN. A label that is missing in the whole batch is
    ignored; without any known label the loss is 0 with a gradient of 0. `batch`: the targets of a larger batch that
    contains this part of it; the losses of all parts add up to the loss of the batch.
    """
    known = ~torch.isnan(targets)
    counted = known if batch is None else ~torch.isnan(batch)
    losses = F.binary_cross_entropy_with_logits(logits, torch.nan_to_num(targets), reduction="none")
    per_label = (losses * known).sum(dim=0) / counted.sum(dim=0).clamp(min=1)
    return per_label.sum() / counted.any(dim=0).sum().clamp(min=1)


def patient_losses(logits: Tensor, targets: Tensor) -> Tensor:
    """Return each patient's mean cross-entropy over their known labels, shape (batch,); 0 if none is known.

    `logits`, `targets`: as in `masked_bce`, which it equals for a single patient. In a larger batch, that loss weights
    a patient by the others.
    """
    known = ~torch.isnan(targets)
    losses = F.binary_cross_entropy_with_logits(logits, torch.nan_to_num(targets), reduction="none")
    return (losses * known).sum(dim=1) / known.sum(dim=1).clamp(min=1)


def bounded_regression(outputs: Tensor, targets: Tensor, batch: Tensor) -> Tensor:
    """Return the mean loss of estimated measures of scans: smooth L1 of estimates that cannot be far from 0.

    `outputs`, `targets`: (batch, measures); a missing target is NaN, the others lie between -MEASURE_REACH and
    MEASURE_REACH. An estimate is an output that was squeezed into the same range. So one scan adds at most
    2 MEASURE_REACH to the sum over the scans, whatever the weights are, and a mean over many scans cannot become the
    value of one of them. `batch`: as in `masked_bce`.
    """
    return _losses(outputs, targets).sum() / (~torch.isnan(batch)).sum().clamp(min=1)


def block_regression(outputs: Tensor, targets: Tensor, batch: Tensor) -> Tensor:
    """Return the mean over scans of each scan's mean loss of hidden blocks: `bounded_regression`, scan by scan.

    `outputs`, `targets`, `batch`: as there, but (batch, places, blocks). Scans differ in the number of their hidden
    blocks with lung. The mean of each scan is taken first, so that none counts more than another. One without such a
    block adds 0.
    """
    known = (~torch.isnan(targets)).sum(dim=(1, 2)).clamp(min=1)
    return (_losses(outputs, targets).sum(dim=(1, 2)) / known).sum() / len(batch)


def _losses(outputs: Tensor, targets: Tensor) -> Tensor:
    """Return each estimate's loss, at most 2 MEASURE_REACH; 0 where the target is missing."""
    estimates = MEASURE_REACH * torch.tanh(outputs / MEASURE_REACH)
    losses = F.smooth_l1_loss(estimates, torch.nan_to_num(targets), reduction="none")
    return losses * ~torch.isnan(targets)
