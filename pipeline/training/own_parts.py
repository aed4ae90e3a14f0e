"""Losses and transforms of packages (`models.own_code`) in training: how they are called, and what they must return.

A loss gets one patient at a time. So it cannot mix the patients of a batch, which would undo the clipping of each
patient's gradient in private training, unless its code keeps values between calls.
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType

import torch
from torch import Tensor

from models.network_settings import CHANNELS, LABELS
from models.own_code import OwnPart
from models.own_packages import Named

_DEFAULTS: Mapping[str, float] = MappingProxyType({})  # a part's own
TRIAL = (8, 12, 12)  # slices, rows, columns of the scan with which a transform is tried
_TRIAL_TARGETS = ((0.0, 1.0), (1.0, 0.0), (1.0, float("nan")), (float("nan"), 1.0))


class OwnLoss(OwnPart):
    """A loss: from logits, targets and the mask of known labels, each (1, labels), to the patient's loss, shape (1,).

    An unknown target is 0.
    """

    def patients(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Return each patient's loss, shape (batch,); 0 if none of the patient's labels is known.

        `logits`, `targets`: (batch, labels); a missing target is NaN. Raises Refusal E_PACKAGE_PART.
        """
        return torch.cat([self._patient(logits[k : k + 1], targets[k : k + 1]) for k in range(len(logits))])

    def batch(self, logits: Tensor, targets: Tensor, batch: Tensor) -> Tensor:
        """Return the mean over the patients of `batch` with a known label; `targets` are those of a part of it.

        The losses of all parts add up to the loss of the batch. Raises Refusal E_PACKAGE_PART.
        """
        counted = (~torch.isnan(batch)).any(dim=1).sum().clamp(min=1)
        return self.patients(logits, targets).sum() / counted

    def _patient(self, logits: Tensor, targets: Tensor) -> Tensor:
        known = ~torch.isnan(targets)
        if not known.any():
            return 0.0 * logits.sum(dim=1)
        loss = self.call(logits, torch.nan_to_num(targets), known)
        if not isinstance(loss, Tensor) or loss.shape != (1,) or not loss.is_floating_point():
            raise self.bad("it returns no tensor with one loss for each patient, shape (batch,)")
        if not torch.isfinite(loss).all():
            raise self.bad("a patient's loss is not finite")
        if logits.requires_grad and not loss.requires_grad:
            raise self.bad("the loss does not depend on the logits")
        return loss


class OwnTransform(OwnPart):
    """A transform: from a scan (2, slices, rows, columns), float32, and a seeded torch.Generator to another scan."""

    def with_seed(self, seed: int) -> Callable[[Tensor], Tensor]:
        """Return a function that transforms one scan after another. It raises Refusal E_PACKAGE_PART."""
        generator = torch.Generator().manual_seed(seed)
        return lambda scan: self._scan(scan, generator)

    def _scan(self, scan: Tensor, generator: torch.Generator) -> Tensor:
        shape = scan.shape  # before the code could change it in place
        made = self.call(scan, generator)
        if not isinstance(made, Tensor) or made.shape != shape or made.dtype != torch.float32:
            raise self.bad("it returns no float32 tensor with the shape of the scan")
        if not torch.isfinite(made).all():
            raise self.bad("a value of the scan is not finite")
        return made.detach()


def try_loss(part: Named, settings: Mapping[str, float] = _DEFAULTS) -> None:
    """Compute a loss of invented patients. Raises Refusal as `OwnLoss` does."""
    loss = OwnLoss.open(part, settings)
    targets = torch.tensor(_TRIAL_TARGETS)
    noise = torch.Generator().manual_seed(0)
    logits = torch.randn(len(targets), len(LABELS), generator=noise).requires_grad_()
    first, again = (loss.patients(logits, targets) for _ in range(2))
    if not torch.equal(first, again):
        raise loss.bad("it draws random numbers, or keeps values between calls")
    loss.batch(logits, targets, targets).backward()
    if logits.grad is None or not torch.isfinite(logits.grad).all():
        raise loss.bad("its gradient is not finite")


def try_transform(part: Named, settings: Mapping[str, float] = _DEFAULTS) -> None:
    """Transform an invented scan twice with one seed. Raises Refusal as `OwnTransform` does."""
    transform = OwnTransform.open(part, settings)
    scan = torch.rand(CHANNELS, *TRIAL, generator=torch.Generator().manual_seed(0))
    first, again = (transform.with_seed(1)(scan.clone()) for _ in range(2))
    if not torch.equal(first, again):
        raise transform.bad("it draws random numbers that do not come from its generator")
