"""The loss: two labels, either of which may be missing."""

import torch
import torch.nn.functional as F
from torch import Tensor


def masked_bce(logits: Tensor, targets: Tensor) -> Tensor:
    """Mean binary cross-entropy over known labels, each label weighing the same.

    `logits`, `targets`: (batch, labels); a missing target is NaN. A label that nobody in the batch has adds
    nothing; without any known label the loss is 0 with a gradient of 0.
    """
    known = ~torch.isnan(targets)
    losses = F.binary_cross_entropy_with_logits(logits, torch.nan_to_num(targets), reduction="none")
    per_label = (losses * known).sum(dim=0) / known.sum(dim=0).clamp(min=1)
    return per_label.sum() / known.any(dim=0).sum().clamp(min=1)
