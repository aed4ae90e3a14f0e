"""The training step and the epochs around it: the same for one hospital, for pooled data and for a federated round."""

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from models.import_lean import import_lean
from models.loss import masked_bce
from models.network import SeverityNetwork
from models.precision import use_bf16
from pipeline.cohort.dataset import Examples


class TrainSettings(BaseModel):
    """How a network is trained; the same numbers serve baselines and federation."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    batch_size: int = Field(default=8, ge=2)  # batch norm cannot use one
    learning_rate: float = Field(default=0.05, gt=0, le=10)
    momentum: float = Field(default=0.9, gt=0, lt=1)
    weight_decay: float = Field(default=1e-4, ge=0, le=1)
    augment: bool = True


@dataclass(frozen=True)
class Schedule:
    """Where a stretch of training lies in the whole: the learning rate follows a cosine over all epochs.

    With `steps`, an epoch is so many batches, however many patients there are; else it is one pass over them.
    """

    first_epoch: int
    epochs: int
    total_epochs: int
    steps: int = 0

    def learning_rate(self, peak: float, epoch: int, progress: float) -> float:
        """Rate at `progress` (0 to 1) of the given epoch of this stretch; the first epoch warms up."""
        done = self.first_epoch + epoch + progress
        warm = min(1.0, 0.1 + 0.9 * done)
        return peak * warm * 0.5 * (1 + math.cos(math.pi * min(1.0, done / self.total_epochs)))


def augmentation(seed: int) -> Callable[[Tensor], Tensor]:
    """Left-right mirror, small zoom, shift of intensity, noise: what scanners and patients differ in anyway.

    Intensity changes leave the mask channel alone.
    """
    # MONAI takes a second, and most of what imports this module does not augment.
    import_lean("monai")
    from monai.data.meta_obj import set_track_meta
    from monai.transforms.compose import Compose
    from monai.transforms.intensity.array import RandGaussianNoise, RandShiftIntensity
    from monai.transforms.spatial.array import RandFlip, RandZoom

    set_track_meta(False)  # what was done to each scan, which nobody reads, would take a third of the time
    spatial = Compose(
        [
            RandFlip(prob=0.5, spatial_axis=2),
            RandZoom(prob=0.3, min_zoom=0.9, max_zoom=1.1, mode="trilinear", padding_mode="edge"),
        ]
    )
    intensity = Compose([RandShiftIntensity(prob=0.5, offsets=0.06), RandGaussianNoise(prob=0.3, std=0.05)])
    for transforms in (spatial, intensity):
        transforms.set_random_state(seed)

    def augment(scan: Tensor) -> Tensor:
        moved = spatial(scan)
        return torch.cat([intensity(moved[:1]), moved[1:]])

    return augment


def batches(count: int, batch_size: int, rng: np.random.Generator) -> Iterator[NDArray[np.int64]]:
    """Shuffled index batches; a last batch of one, which batch norm cannot use, joins the one before."""
    order = rng.permutation(count)
    starts = list(range(0, count, batch_size))
    if len(starts) > 1 and count - starts[-1] == 1:
        starts.pop()
    for start, end in zip(starts, [*starts[1:], count], strict=True):
        yield order[start:end]


def epoch_batches(count: int, batch_size: int, steps: int, rng: np.random.Generator) -> list[NDArray[np.int64]]:
    """The batches of one epoch: of one pass over `count` patients, or `steps` of as many passes as they take."""
    if not steps:
        return list(batches(count, batch_size, rng))
    endless = itertools.chain.from_iterable(batches(count, batch_size, rng) for _ in itertools.count())
    return list(itertools.islice(endless, steps))


def train(
    network: SeverityNetwork,
    examples: Examples,
    settings: TrainSettings,
    schedule: Schedule,
    *,
    seed: int,
    proximal_mu: float = 0.0,
) -> float:
    """Train `network` in place for `schedule.epochs` epochs; returns the mean loss of the last one.

    The order of patients and the augmentation follow from `seed` and the epoch's number alone, so that an
    interrupted training goes on as it would have gone. `proximal_mu` holds the weights near those that came in
    (FedProx: Li et al., Federated optimization in heterogeneous networks, MLSys 2020).
    """
    anchor = [weight.detach().clone() for weight in network.parameters()] if proximal_mu else []
    optimiser = torch.optim.SGD(
        network.parameters(),
        lr=settings.learning_rate,
        momentum=settings.momentum,
        nesterov=True,
        weight_decay=settings.weight_decay,
    )
    network.train()
    loss = math.nan
    for epoch in range(schedule.epochs):
        epoch_seed = (seed, schedule.first_epoch + epoch)
        rng = np.random.default_rng(epoch_seed)
        augment = augmentation(int(rng.integers(2**31))) if settings.augment else None
        order = epoch_batches(len(examples), settings.batch_size, schedule.steps, rng)
        losses = []
        for number, index in enumerate(order):
            rate = schedule.learning_rate(settings.learning_rate, epoch, number / len(order))
            for group in optimiser.param_groups:
                group["lr"] = rate
            losses.append(step(network, optimiser, *examples.batch(index, augment), anchor, proximal_mu))
        loss = float(np.mean(losses))
    return loss


def step(
    network: SeverityNetwork,
    optimiser: torch.optim.Optimizer,
    scans: Tensor,
    tabular: Tensor,
    targets: Tensor,
    anchor: Sequence[Tensor] = (),
    proximal_mu: float = 0.0,
) -> float:
    """One optimiser step; returns the batch's loss, without the pull towards the `anchor`, if there is one."""
    optimiser.zero_grad(set_to_none=True)
    with torch.autocast("cpu", torch.bfloat16, enabled=use_bf16()):
        logits = network(scans, tabular)
    loss = masked_bce(logits, targets)
    loss.backward()
    for weight, came_in in zip(network.parameters(), anchor, strict=False):
        if weight.grad is not None:  # that of mu / 2 times the squared distance
            weight.grad.add_(weight.detach() - came_in, alpha=proximal_mu)
    torch.nn.utils.clip_grad_norm_(network.parameters(), 5.0)
    optimiser.step()
    network.hold_short()
    return float(loss.detach())


@torch.inference_mode()
def predict(network: SeverityNetwork, examples: Examples, *, batch_size: int = 16) -> NDArray[np.float32]:
    """Logits of all examples, shape (patients, labels)."""
    network.eval()
    logits = []
    for start in range(0, len(examples), batch_size):
        scans, tabular, _ = examples.batch(np.arange(start, min(start + batch_size, len(examples))), None)
        with torch.autocast("cpu", torch.bfloat16, enabled=use_bf16()):
            logits.append(network(scans, tabular))
    return torch.cat(logits).numpy() if logits else np.zeros((0, 2), dtype=np.float32)
