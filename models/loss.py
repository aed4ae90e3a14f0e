"""Computes the loss for two labels, each of which may be missing."""

import torch
import torch.nn.functional as F
from torch import Tensor


def masked_bce(logits: Tensor, targets: Tensor) -> Tensor:
    """Return the mean binary cross-entropy over known labels, with equal weight for each label.

    `logits`, `targets`: (batch, labels); a missing target is NaN. A label that is missing in the whole batch is
    ignored; without any known label the loss is 0 with a gradient of 0.
    """
    known = ~torch.isnan(targets)
    losses = F.binary_cross_entropy_with_logits(logits, torch.nan_to_num(targets), reduction="none")
    per_label = (losses * known).sum(dim=0) / known.sum(dim=0).clamp(min=1)
    return per_label.sum() / known.any(dim=0).sum().clamp(min=1)
