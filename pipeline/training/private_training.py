"""Patient-level differentially private training (DP-SGD, Abadi et al. 2016) with Opacus and the system's randomness.

Each step draws every patient with the same small probability (Poisson sampling), computes each drawn patient's own
gradient, clips it to `max_grad_norm`, sums the gradients, and adds Gaussian noise. A site has one scan of a patient
(`cohort.selection`), so an example is a patient. `privacy_budget` accounts for the cost of the steps.

The drawn patients and the noise must be secret. They must not depend on the study's seed, which the server knows, nor
on torch's generator, whose 32-bit seed the server could find by trying all values. Opacus's own solution, torchcsprng,
is not available for current torch versions, so the system's generator is used, and the noise is added on the CPU. All
computations use float32, never bfloat16 or float16, in which a gradient may be longer than its measured norm.
"""

import os
from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from opacus import GradSampleModule
from opacus.optimizers import DPOptimizer
from scipy.special import ndtri
from torch import Tensor, nn

from models.compute import PROCESSOR, Compute
from models.loss import patient_losses
from models.network import SeverityNetwork
from pipeline.cohort.dataset import Examples
from pipeline.training.own_parts import OwnLoss
from pipeline.training.privacy_budget import PrivacySettings
from pipeline.training.train import augmentation_of
from pipeline.training.train_settings import Schedule, TrainSettings

PatientLosses = Callable[[Tensor, Tensor], Tensor]  # of logits and targets, shape (batch,)


def train_privately(
    network: SeverityNetwork,
    examples: Examples,
    settings: TrainSettings,
    privacy: PrivacySettings,
    schedule: Schedule,
    *,
    seed: int,
    compute: Compute = PROCESSOR,
) -> None:
    """Train `network` (with group norm) in place for `schedule.epochs` epochs.

    `settings.batch_size` is the number of scans computed at once, or `micro_batch` of [compute] if that is less; it
    does not change the result. Precision, checkpointing and prefetch of [compute] do not apply. No loss is returned: it
    would be a metric of the training patients without noise. Raises Refusal: those of `Compute.use` and of a package's
    parts (`own_parts`).
    """
    losses = patient_losses_of(settings)
    network.train()
    exact = compute.exact()
    with exact.use(network):
        hooked = hook(network)
        try:
            optimiser = PatientOptimiser(network, settings, privacy, patients=len(examples))
            for epoch in range(schedule.epochs):
                rng = np.random.default_rng((seed, schedule.first_epoch + epoch))
                augment = augmentation_of(settings, rng)
                for number in range(privacy.steps_an_epoch):
                    rate = schedule.learning_rate(settings.learning_rate, epoch, number / privacy.steps_an_epoch)
                    for group in optimiser.param_groups:
                        group["lr"] = rate
                    drawn = draw(len(examples), privacy.sample_rate)
                    at_once = exact.at_most(settings.batch_size)
                    step(
                        hooked,
                        optimiser,
                        examples,
                        drawn,
                        at_once=at_once,
                        augment=augment,
                        losses=losses,
                        compute=exact,
                    )
                    network.hold_short()  # after the noise: it costs no privacy
        finally:
            hooked.to_standard_module()  # removes the hooks and the gradients of single patients


def hook(network: SeverityNetwork) -> GradSampleModule:
    """Add hooks to the network that store each patient's gradient in each parameter's `grad_sample`."""
    # torch.func instead of Opacus's own rules: a third faster for our 3D convolutions, with less memory.
    return GradSampleModule(network, loss_reduction="sum", force_functorch=True)


class PatientOptimiser(DPOptimizer):
    """Opacus's optimiser around the SGD of `pipeline.training.train`, with noise from the system's generator.

    The sum of gradients is divided by the expected number of drawn patients, which reveals nothing about the actual
    draw.
    """

    def __init__(self, network: nn.Module, settings: TrainSettings, privacy: PrivacySettings, *, patients: int) -> None:
        sgd = torch.optim.SGD(
            network.parameters(),
            lr=settings.learning_rate,
            momentum=settings.momentum,
            nesterov=True,
            weight_decay=settings.weight_decay,
        )
        super().__init__(
            sgd,
            noise_multiplier=privacy.noise_multiplier,
            max_grad_norm=privacy.max_grad_norm,
            expected_batch_size=privacy.sample_rate * patients,
        )

    def clip_and_accumulate(self) -> None:
        """Clip each patient's gradient and add it to the sum; non-finite values count as 0.

        Otherwise the sum would not be finite either, and would reveal a patient despite the noise.
        """
        for parameter in self.params:
            parameter.grad_sample.nan_to_num_(nan=0.0, posinf=0.0, neginf=0.0)
        super().clip_and_accumulate()

    def add_noise(self) -> None:
        """Add Gaussian noise to the sum of clipped gradients.

        The addition is in float64 with one rounding: float32 noise has gaps between its values, which would reveal the
        sum (Mironov 2012).
        """
        deviation = self.noise_multiplier * self.max_grad_norm
        for parameter in self.params:
            noise = torch.from_numpy(ndtri(uniform(parameter.numel()))).view(parameter.shape)
            parameter.grad = (parameter.summed_grad.cpu().double() + deviation * noise).to(parameter)


def step(
    network: nn.Module,
    optimiser: DPOptimizer,
    examples: Examples,
    drawn: NDArray[np.int64],
    *,
    at_once: int,
    augment: Callable[[Tensor], Tensor] | None,
    losses: PatientLosses | None = None,
    compute: Compute = PROCESSOR,
) -> None:
    """Do one step on the patients `drawn`; without any, the step consists of noise only, as required.

    `network`: with its hooks (`hook`), on the device. `losses`: of patients; default `patient_losses`.
    """
    losses = losses or patient_losses
    parts = np.split(drawn, range(at_once, len(drawn), at_once))
    for number, part in enumerate(parts, start=1):
        if len(part):
            scans, tabular, targets = map(compute.move, examples.batch(part, augment))
            losses(network(scans, tabular), targets).sum().backward()
        else:
            for parameter in optimiser.params:
                parameter.grad_sample = parameter.new_zeros((0, *parameter.shape))
        optimiser.signal_skip_step(do_skip=number < len(parts))  # if skipped, it only clips and adds up
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)


def patient_losses_of(settings: TrainSettings) -> PatientLosses:
    """Return the loss of single patients for these settings. Raises Refusal: those of `OwnPart.open`."""
    if settings.own_loss is None:
        return patient_losses
    return OwnLoss.open(settings.own_loss, settings.loss_settings).patients


def draw(count: int, sample_rate: float) -> NDArray[np.int64]:
    """Draw patients among `count`, each independently with the probability `sample_rate`."""
    return np.flatnonzero(uniform(count) < sample_rate)


def uniform(count: int) -> NDArray[np.float64]:
    """Return numbers between 0 and 1, both excluded, from the system's generator, in steps of 2**-52."""
    words = np.frombuffer(os.urandom(8 * count), dtype=np.uint64)
    return ((words >> np.uint64(12)).astype(np.float64) + 0.5) * 2.0**-52
