"""Computes the loss for two labels, each of which may be missing."""

import torch
import torch.nn.functional as F
from torch import Tensor


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
