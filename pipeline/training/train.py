"""The training step and the epochs: the same for one hospital, pooled data and a federated round."""

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.checkpointing import uncounted
from models.compute import PROCESSOR, Compute
from models.import_lean import import_lean
from models.loss import masked_bce, patient_losses
from models.network import SeverityNetwork
from models.reasons import COMPUTE_SCALE
from models.refusal import Refusal
from models.replicas import Replicas
from pipeline.cohort.dataset import Batch, Examples
from pipeline.cohort.prefetch import ahead
from pipeline.training.appearance import appearance_changes
from pipeline.training.own_parts import OwnLoss, OwnTransform
from pipeline.training.train_settings import Schedule, TrainSettings

BatchLoss = Callable[[Tensor, Tensor, Tensor], Tensor]  # of logits, targets, and the targets of the whole batch
_SCALES = 24  # of the loss in fp16, each half of the one before, until the gradients are finite


def augmentation(seed: int, *, vary_appearance: bool = False) -> Callable[[Tensor], Tensor]:
    """Return an augmentation: left-right flip, small zoom, intensity shift and noise, as between patients and scanners.

    Intensity changes do not affect the mask channel. `vary_appearance`: densities, sharpness and correlated noise too.
    """
    # Importing MONAI takes a second, and most importers of this module do not augment.
    import_lean("monai")
    from monai.data.meta_obj import set_track_meta
    from monai.transforms.compose import Compose
    from monai.transforms.intensity.array import RandGaussianNoise, RandShiftIntensity
    from monai.transforms.spatial.array import RandFlip, RandZoom

    set_track_meta(False)  # tracking the unused history of each scan takes a third of the time
    spatial = Compose(
        [
            RandFlip(prob=0.5, spatial_axis=2),
            RandZoom(prob=0.3, min_zoom=0.9, max_zoom=1.1, mode="trilinear", padding_mode="edge"),
        ]
    )
    intensity = Compose([RandShiftIntensity(prob=0.5, offsets=0.06), RandGaussianNoise(prob=0.3, std=0.05)])
    for transforms in (spatial, intensity):
        transforms.set_random_state(seed)
    look = appearance_changes(seed) if vary_appearance else None

    def augment(scan: Tensor) -> Tensor:
        moved = spatial(scan)
        image = intensity(moved[:1])
        return torch.cat([image if look is None else look(image), moved[1:]])

    return augment


def augmentation_of(settings: TrainSettings, rng: np.random.Generator) -> Callable[[Tensor], Tensor] | None:
    """Return the augmentation of one epoch, then the package's transform; None where the settings have neither.

    Raises Refusal: those of `OwnPart.open`.
    """
    usual = None
    if settings.augment:
        usual = augmentation(int(rng.integers(2**31)), vary_appearance=settings.vary_appearance)
    if settings.own_transform is None:
        return usual
    own = OwnTransform.open(settings.own_transform, settings.transform_settings).with_seed(int(rng.integers(2**31)))
    return own if usual is None else lambda scan: own(usual(scan))


def loss_of(settings: TrainSettings) -> BatchLoss:
    """Return the loss of a batch, or of a part of it, for these settings. Raises Refusal: those of `OwnPart.open`."""
    if settings.own_loss is None:
        return cross_entropy if settings.loss == "cross_entropy" else cross_entropy_by_patient
    return OwnLoss.open(settings.own_loss, settings.loss_settings).batch


def cross_entropy(logits: Tensor, targets: Tensor, batch: Tensor) -> Tensor:
    """Return the usual loss of a part of a batch, see `masked_bce`."""
    return masked_bce(logits, targets, batch=batch)


def cross_entropy_by_patient(logits: Tensor, targets: Tensor, batch: Tensor) -> Tensor:
    """Return the part of a batch's mean of `patient_losses`.

    Each patient counts the same, so the hospitals' means, weighted by their patients, are the mean over all patients.
    """
    return patient_losses(logits, targets).sum() / len(batch)


def batches(count: int, batch_size: int, rng: np.random.Generator) -> Iterator[NDArray[np.int64]]:
    """Yield shuffled index batches; a last batch of one, invalid for batch norm, is merged with the previous one."""
    order = rng.permutation(count)
    starts = list(range(0, count, batch_size))
    if len(starts) > 1 and count - starts[-1] == 1:
        starts.pop()
    for start, end in zip(starts, [*starts[1:], count], strict=True):
        yield order[start:end]


def epoch_batches(count: int, batch_size: int, steps: int, rng: np.random.Generator) -> list[NDArray[np.int64]]:
    """Return the batches of one epoch: one pass over `count` patients, or `steps` batches from repeated passes."""
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
    compute: Compute = PROCESSOR,
    loss: BatchLoss | None = None,
) -> float:
    """Train `network` in place for `schedule.epochs` epochs; return the mean loss of the last one.

    The order of patients and the augmentation depend only on `seed` and the epoch's number, so an interrupted training
    continues with identical results. `proximal_mu` holds the weights near the initial ones
    (FedProx: Li et al., Federated optimization in heterogeneous networks, MLSys 2020). `loss`: instead of that of the
    settings.

    Raises Refusal E_COMPUTE_MICRO_BATCH, E_COMPUTE_SCALE, those of `Compute.use` and of a package's parts
    (`own_parts`).
    """
    loss_function = loss or loss_of(settings)
    at_once = compute.parts(network, settings.batch_size)
    network.train()
    mean_loss = math.nan
    with compute.train(network) as replicas:
        anchor = [weight.detach().clone() for weight in network.parameters()] if proximal_mu else []
        optimiser = torch.optim.SGD(
            network.parameters(),
            lr=settings.learning_rate,
            momentum=settings.momentum,
            nesterov=True,
            weight_decay=settings.weight_decay,
        )
        scaler = compute.scaler()
        for epoch in range(schedule.epochs):
            epoch_seed = (seed, schedule.first_epoch + epoch)
            rng = np.random.default_rng(epoch_seed)
            augment = augmentation_of(settings, rng)
            order = epoch_batches(len(examples), settings.batch_size, schedule.steps, rng)
            tasks = (partial(examples.batch, index, augment) for index in order)
            losses = []
            for number, batch in enumerate(ahead(tasks, compute.prefetch)):
                rate = schedule.learning_rate(settings.learning_rate, epoch, number / len(order))
                for group in optimiser.param_groups:
                    group["lr"] = rate
                stepped = step(
                    network,
                    optimiser,
                    *batch,
                    anchor,
                    proximal_mu,
                    loss=loss_function,
                    compute=compute,
                    scaler=scaler,
                    at_once=at_once,
                    replicas=replicas,
                )
                losses.append(stepped)
            mean_loss = float(np.mean(losses))
    return mean_loss


def step(
    network: SeverityNetwork,
    optimiser: torch.optim.Optimizer,
    scans: Tensor,
    tabular: Tensor,
    targets: Tensor,
    anchor: Sequence[Tensor] = (),
    proximal_mu: float = 0.0,
    *,
    loss: BatchLoss = cross_entropy,
    compute: Compute = PROCESSOR,
    scaler: torch.amp.GradScaler | None = None,
    at_once: int = 0,
    replicas: Replicas | None = None,
) -> float:
    """Do one optimiser step; return the batch's loss without the proximal term towards the `anchor`.

    The network and the `anchor` must be on the device (`Compute.train`). `scaler`: that of the whole training.
    `at_once`: number of scans whose gradients are computed together and then added up; 0: all. `replicas`: those of
    `Compute.train`, which share the batch. However it is computed, this is one step, and batch norm counts the batch
    once.

    Raises Refusal E_COMPUTE_SCALE if fp16 cannot hold the gradients.
    """
    scaler = scaler or compute.scaler()
    replicas = replicas or Replicas(network, compute.device)
    mean = _finite_gradients(replicas, optimiser, (scans, tabular, targets), loss, compute, scaler, at_once)
    for weight, came_in in zip(network.parameters(), anchor, strict=False):
        if weight.grad is not None:  # gradient of mu / 2 times the squared distance
            weight.grad.add_(weight.detach() - came_in, alpha=proximal_mu)
    torch.nn.utils.clip_grad_norm_(network.parameters(), 5.0)
    scaler.step(optimiser)
    scaler.update()
    network.hold_short()
    return float(mean)


def _finite_gradients(
    replicas: Replicas,
    optimiser: torch.optim.Optimizer,
    batch: Batch,
    loss_function: BatchLoss,
    compute: Compute,
    scaler: torch.amp.GradScaler,
    at_once: int,
) -> Tensor:
    """Compute the gradients of a batch; in fp16, with smaller scales of the loss until all are finite.

    torch's scaler would skip the step instead, and a round would have fewer steps than the gateway expects.
    """
    loss = _gradients(replicas, optimiser, batch, loss_function, compute, scaler, at_once)
    scaler.unscale_(optimiser)
    if not scaler.is_enabled():
        return loss
    weights = list(replicas.network.parameters())
    for _ in range(_SCALES):
        if all(bool(torch.isfinite(weight.grad).all()) for weight in weights if weight.grad is not None):
            return loss
        scaler.update()  # halves the scale
        with uncounted(replicas.network):
            loss = _gradients(replicas, optimiser, batch, loss_function, compute, scaler, at_once)
        scaler.unscale_(optimiser)
    raise Refusal(COMPUTE_SCALE)


def _gradients(
    replicas: Replicas,
    optimiser: torch.optim.Optimizer,
    batch: Batch,
    loss_function: BatchLoss,
    compute: Compute,
    scaler: torch.amp.GradScaler,
    at_once: int,
) -> Tensor:
    """Compute the gradients of a batch's loss, multiplied by the scaler's scale; return the loss."""
    optimiser.zero_grad(set_to_none=True)
    replicas.refresh()
    scans, tabular, targets = batch
    share = math.ceil(len(scans) / len(replicas.places))
    size = min(at_once or share, share)
    losses: list[Tensor] = []
    parts = (slice(start, start + size) for start in range(0, len(scans), size))
    while some := list(zip(replicas.places, parts, strict=False)):  # as many parts as there are devices
        together = []
        for (network, device), part in some:
            known = targets.to(device)
            with compute.autocast():
                logits = network(scans[part].to(device), tabular[part].to(device))
            together.append(loss_function(logits, known[part], known))
        torch.autograd.backward([scaler.scale(loss) for loss in together])
        losses.extend(loss.detach().to(compute.device) for loss in together)
    replicas.collect()
    return torch.stack(losses).sum()


@torch.inference_mode()
def predict(
    network: SeverityNetwork, examples: Examples, *, batch_size: int = 16, compute: Compute = PROCESSOR
) -> NDArray[np.float32]:
    """Return the logits of all examples, shape (patients, labels). Raises Refusal: those of `Compute.use`."""
    network.eval()
    logits = []
    at_once = compute.at_most(batch_size)
    with compute.use(network):
        for start in range(0, len(examples), at_once):
            scans, tabular, _ = examples.batch(np.arange(start, min(start + at_once, len(examples))), None)
            with compute.autocast():
                logits.append(network(compute.move(scans), compute.move(tabular)).cpu())
    return torch.cat(logits).numpy() if logits else np.zeros((0, 2), dtype=np.float32)
