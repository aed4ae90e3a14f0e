"""Training with differential privacy (DP-SGD, Abadi et al. 2016) whose unit is the patient: Opacus, our randomness.

Each step draws every patient with the same small probability (Poisson sampling), takes each drawn patient's own
gradient, shortens it to `max_grad_norm`, adds them up, and adds Gaussian noise. A site has one scan of a patient
(`cohort.selection`), so an example is a patient. `privacy_budget` accounts for the cost of the steps.

Who is drawn and what is added must be secret. Neither may follow from the study's seed, which the server knows, nor
from torch's generator, whose seed has 32 bits: the server could try them all. Opacus's own remedy, torchcsprng, is no
longer made for today's torch; the system's generator serves here. All is computed in float32, never in bfloat16, in
which a gradient may be longer than it was measured to be.
"""

import os
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from opacus import GradSampleModule
from opacus.optimizers import DPOptimizer
from scipy.special import ndtri
from torch import Tensor, nn

from models.network import SeverityNetwork
from pipeline.cohort.dataset import Examples
from pipeline.training.privacy_budget import PrivacySettings
from pipeline.training.train import Schedule, TrainSettings, augmentation


def train_privately(
    network: SeverityNetwork,
    examples: Examples,
    settings: TrainSettings,
    privacy: PrivacySettings,
    schedule: Schedule,
    *,
    seed: int,
) -> None:
    """Train `network` (with group norm) in place for `schedule.epochs` epochs.

    `settings.batch_size` is how many scans are computed at once; it changes no result. No loss is returned: it would
    be a figure about the patients who are learnt from, without noise.
    """
    network.train()
    hooked = hook(network)
    try:
        optimiser = PatientOptimiser(network, settings, privacy, patients=len(examples))
        for epoch in range(schedule.epochs):
            rng = np.random.default_rng((seed, schedule.first_epoch + epoch))
            augment = augmentation(int(rng.integers(2**31))) if settings.augment else None
            for number in range(privacy.steps_an_epoch):
                rate = schedule.learning_rate(settings.learning_rate, epoch, number / privacy.steps_an_epoch)
                for group in optimiser.param_groups:
                    group["lr"] = rate
                drawn = draw(len(examples), privacy.sample_rate)
                step(hooked, optimiser, examples, drawn, at_once=settings.batch_size, augment=augment)
                network.hold_short()  # after the noise: it costs no privacy
    finally:
        hooked.to_standard_module()  # takes the hooks out, and each patient's gradients


def hook(network: SeverityNetwork) -> GradSampleModule:
    """The network with hooks that leave each patient's gradient in each parameter's `grad_sample`."""
    # By torch.func rather than by Opacus's own rules: for our 3D convolutions a third faster, with less memory.
    return GradSampleModule(network, loss_reduction="sum", force_functorch=True)


class PatientOptimiser(DPOptimizer):
    """Opacus's optimiser around the SGD of `pipeline.training.train`; the noise is drawn from the system's generator.

    The sum of gradients is divided by the number of patients that is expected to be drawn, which tells nothing of who
    was.
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
        """Shorten each patient's gradient and add it up; one that is not finite counts as none.

        Else the sum would not be finite either, and tell of a patient that no noise could hide.
        """
        for parameter in self.params:
            parameter.grad_sample.nan_to_num_(nan=0.0, posinf=0.0, neginf=0.0)
        super().clip_and_accumulate()

    def add_noise(self) -> None:
        """Gaussian noise on the sum of shortened gradients.

        Added in float64 and rounded once: among the float32 that noise alone can give there are gaps, which would tell
        the sum (Mironov 2012).
        """
        deviation = self.noise_multiplier * self.max_grad_norm
        for parameter in self.params:
            noise = torch.from_numpy(ndtri(uniform(parameter.numel()))).view_as(parameter)
            parameter.grad = (parameter.summed_grad.double() + deviation * noise).to(parameter.dtype)


def step(
    network: nn.Module,
    optimiser: DPOptimizer,
    examples: Examples,
    drawn: NDArray[np.int64],
    *,
    at_once: int,
    augment: Callable[[Tensor], Tensor] | None,
) -> None:
    """One step on the patients `drawn`; without any it is a step of noise alone, as it must be.

    `network`: with its hooks (`hook`).
    """
    parts = np.split(drawn, range(at_once, len(drawn), at_once))
    for number, part in enumerate(parts, start=1):
        if len(part):
            scans, tabular, targets = examples.batch(part, augment)
            patient_losses(network(scans, tabular), targets).sum().backward()
        else:
            for parameter in optimiser.params:
                parameter.grad_sample = parameter.new_zeros((0, *parameter.shape))
        optimiser.signal_skip_step(do_skip=number < len(parts))  # then it shortens and adds up, and no more
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)


def patient_losses(logits: Tensor, targets: Tensor) -> Tensor:
    """Each patient's mean cross-entropy over their known labels, shape (batch,); 0 where none is known.

    `models.loss.masked_bce` of a patient alone: over a batch that one weighs a patient by who else is in it.
    """
    known = ~torch.isnan(targets)
    losses = F.binary_cross_entropy_with_logits(logits, torch.nan_to_num(targets), reduction="none")
    return (losses * known).sum(dim=1) / known.sum(dim=1).clamp(min=1)


def draw(count: int, sample_rate: float) -> NDArray[np.int64]:
    """Which of `count` patients take part: each with the probability `sample_rate`, on their own."""
    return np.flatnonzero(uniform(count) < sample_rate)


def uniform(count: int) -> NDArray[np.float64]:
    """Numbers between 0 and 1 from the system's generator; neither end is among them, and their step is 2**-52."""
    words = np.frombuffer(os.urandom(8 * count), dtype=np.uint64)
    return ((words >> np.uint64(12)).astype(np.float64) + 0.5) * 2.0**-52
