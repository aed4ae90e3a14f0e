"""A network whose last block holds thresholds on one measure of the scan, and a simulation of its updates.

The measure is the mean of the lung mask, that is, the size of the lungs. The first convolution computes a local mean of
the mask in every channel, the later ones pass it on, and no ReLU cuts it. Batch norm then expresses it in standard
deviations from the mean of the patients of one training step, and its scales and shifts are the thresholds.

The server knows neither which patients share a step nor the augmentation. Therefore the decoder is a linear regression
from what the server observes to the number of patients of each kind. It is fitted to simulated hospitals, whose
patients are drawn by the same rule as those of the attacked hospitals, from other seeds.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from federation.protocol.study_config import Study
from models.network import SeverityNetwork
from pipeline.training.train import augmentation, epoch_batches
from tests.attacks.cohort import Patient, draw_patients
from tests.attacks.rig import seed_network

Matrix = NDArray[np.float64]
Observe = Callable[["Simulated", np.random.Generator], Matrix]
SCALE = 0.25  # of the batch norm that holds the thresholds
FARTHEST = 0.5  # its largest shift: thresholds lie up to two standard deviations from the mean
_PASSING_SCALE, _PASSING_SHIFT = 0.1, 0.5  # a ReLU leaves five standard deviations unchanged
POOL, POOL_SEED, VIEWS = 600, 9_000, 4
SIMULATED, RIDGES = 3_000, (0.01, 0.1, 1.0, 10.0, 100.0, 1_000.0)
_LEFT_OUT = 0.005  # share of an observation's spread that the simulation does not model
_DIGITS = 1e-4  # share of an observation's size: smaller digits are those of single precision


# --- the network ------------------------------------------------------------------------------------------


@torch.no_grad()
def scan_trap(study: Study, *, gates: str, bias: Sequence[float] = (0.0, 0.0)) -> SeverityNetwork:
    """Create a network with thresholds in the norm `gates` ("bn1" or "bn2") of the last block, and a head of biases
    only.
    """
    network = seed_network(study)
    backbone = network.backbone
    _average(backbone.conv1, channel=1)
    _pass(backbone.bn1)
    for layer in (backbone.layer1, backbone.layer2, backbone.layer3, backbone.layer4):
        for block in layer:
            if block.downsample is None:
                _silence(block.bn2)  # the block passes its input on unchanged
                continue
            _silence(block.downsample[1])
            _average(block.conv1, channel=0)
            _each_to_itself(block.conv2)
            _pass(block.bn1)
            _pass(block.bn2)
    norm = getattr(backbone.layer4[0], gates)
    norm.weight.fill_(SCALE)
    norm.bias.copy_(torch.from_numpy(shifts(network)))
    network.head.weight.zero_()
    network.head.bias.copy_(torch.tensor(bias))
    return network


def shifts(network: SeverityNetwork) -> NDArray[np.float32]:
    return np.linspace(-FARTHEST, FARTHEST, network.features, dtype=np.float32)


def _average(convolution: nn.Conv3d, *, channel: int) -> None:
    """Set the mean of one channel, in each output channel, at twice the length of the weights at the seed."""
    length = 2 * _rms(convolution.weight) * convolution.weight.shape[1] ** 0.5
    convolution.weight.zero_()
    convolution.weight[:, channel] = length


def _each_to_itself(convolution: nn.Conv3d) -> None:
    length = 2 * _rms(convolution.weight) * convolution.weight[0].numel() ** 0.5
    middle = [side // 2 for side in convolution.kernel_size]
    convolution.weight.zero_()
    for channel in range(convolution.out_channels):
        convolution.weight[(channel, channel, *middle)] = length


def _pass(norm: nn.BatchNorm3d) -> None:
    norm.weight.fill_(_PASSING_SCALE)
    norm.bias.fill_(_PASSING_SHIFT)


def _silence(norm: nn.BatchNorm3d) -> None:
    norm.weight.zero_()
    norm.bias.zero_()


def _rms(weight: Tensor) -> float:
    return float(weight.square().mean().sqrt())


@torch.no_grad()
def halfway(study: Study, target: SeverityNetwork) -> SeverityNetwork:
    """Return weights between the seed's and the target's, because a round may not move a tensor the whole way."""
    network = seed_network(study)
    for weight, other in zip(network.parameters(), target.parameters(), strict=True):
        weight.add_(0.5 * (other - weight))
    return network


def order_of_round(study: Study, patients: int, rng: np.random.Generator) -> list[NDArray[np.int64]]:
    """Draw the patients of each step of a round in a random order: the server does not know the site's order."""
    settings, schedule = study.training, study.schedule(1)
    epochs = [epoch_batches(patients, settings.batch_size, schedule.steps, rng) for _ in range(schedule.epochs)]
    return [index for epoch in epochs for index in epoch]


# --- patients that the server simulates -------------------------------------------------------------------


@dataclass(frozen=True)
class Pool:
    """Simulated patients. `measure`: of each scan without augmentation. `last` and `first`: of some augmented views.

    `last`: the input of the gates' batch norm. `first`: the spatial mean of the first channel of the first convolution.
    """

    patients: Sequence[Patient]
    measure: Matrix
    last: Matrix
    first: Matrix


@dataclass(frozen=True)
class Simulated:
    """A simulated hospital with patients of a pool."""

    pool: Pool
    chosen: NDArray[np.int64]
    pcr: NDArray[np.bool_]
    severe: Matrix  # NaN where unknown

    def views(self, index: NDArray[np.int64], rng: np.random.Generator) -> tuple[Matrix, Matrix]:
        """Return `last` and `first` of these patients of the hospital, each in a different augmented view."""
        view = rng.integers(VIEWS, size=len(index))
        return self.pool.last[self.chosen[index], view], self.pool.first[self.chosen[index], view]


def measure_of(patient: Patient) -> float:
    """Return the share of the scan that is lung."""
    return float(patient.tensor[1].astype(np.float64).mean())


@torch.no_grad()
def make_pool(network: SeverityNetwork, *, gates: str) -> Pool:
    patients = draw_patients(POOL_SEED, {"train": POOL})
    seen: dict[str, list[Tensor]] = {"first": [], "last": []}

    def keep(name: str) -> Callable[..., None]:
        return lambda _, given: seen[name].append(given[0][:, 0].float().flatten(1).mean(dim=1))

    hooks = [
        network.backbone.bn1.register_forward_pre_hook(keep("first")),
        getattr(network.backbone.layer4[0], gates).register_forward_pre_hook(keep("last")),
    ]
    network.train()
    augment = augmentation(POOL_SEED)
    for _ in range(VIEWS):
        for start in range(0, POOL, 50):
            some = patients[start : start + 50]
            scans = torch.stack([augment(torch.from_numpy(patient.tensor).float()) for patient in some])
            network(scans, torch.zeros(len(some), 4))
    for hook in hooks:
        hook.remove()
    first, last = (torch.cat(seen[name]).double().numpy().reshape(VIEWS, POOL).T for name in ("first", "last"))
    return Pool(patients, np.array([measure_of(patient) for patient in patients]), last, first)


def simulate(pool: Pool, patients: int, rng: np.random.Generator) -> Simulated:
    chosen = rng.choice(len(pool.patients), patients, replace=False)
    drawn = [pool.patients[place] for place in chosen]
    severe = np.array([np.nan if patient.severe is None else float(patient.severe) for patient in drawn])
    return Simulated(pool, chosen, np.array([patient.pcr for patient in drawn]), severe)


def gate_outputs(last: Matrix, all_shifts: NDArray[np.float32]) -> Matrix:
    """Return the gates' outputs for the patients of one step, shape (patients, gates)."""
    deviations = (last - last.mean()) / max(float(last.std()), 1e-12)
    return np.maximum(SCALE * deviations[:, None] + all_shifts.astype(np.float64), 0.0)


# --- the decoder ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Decoder:
    """Maps an observation to the expected number of patients of each kind. `gain`: explained share of the counts'
    variance at simulated hospitals that were not used for the fit.
    """

    mean: Matrix
    spread: Matrix
    weights: Matrix
    usual: Matrix
    gain: float

    def counts(self, observed: Matrix) -> Matrix:
        expected: Matrix = self.usual + (observed - self.mean) / self.spread @ self.weights
        return expected


def fit(observed: Matrix, counts: Matrix) -> Decoder:
    """Fit a ridge regression with the penalty that works best at a fifth of the hospitals, which are held out."""
    cut = len(observed) * 4 // 5
    mean = observed[:cut].mean(axis=0)
    spread = np.maximum(observed[:cut].std(axis=0), _DIGITS * np.maximum(np.abs(mean), 0.01))
    x, usual = (observed - mean) / spread, counts[:cut].mean(axis=0)
    y = counts - usual
    best: Decoder | None = None
    for ridge in RIDGES:
        weights = np.linalg.solve(x[:cut].T @ x[:cut] + ridge * np.eye(x.shape[1]), x[:cut].T @ y[:cut])
        gain = 1 - float(np.square(y[cut:] - x[cut:] @ weights).sum() / np.square(y[cut:]).sum())
        if best is None or gain > best.gain:
            best = Decoder(mean, spread, weights, usual, gain)
    assert best is not None
    return best


def learn(
    pool: Pool,
    patients: int,
    kinds: Callable[[Simulated], NDArray[np.int64]],
    observe: Observe,
    *,
    simulated: int = SIMULATED,
) -> Decoder:
    """Fit a decoder for hospitals of this size. `kinds`: the number of each patient's kind, from 0."""
    rng = np.random.default_rng(POOL_SEED)
    hospitals = [simulate(pool, patients, rng) for _ in range(simulated)]
    found = [kinds(hospital) for hospital in hospitals]
    most = 1 + max(int(each.max()) for each in found)
    counts = np.stack([np.bincount(each, minlength=most) for each in found]).astype(np.float64)
    observed = np.stack([observe(hospital, rng) for hospital in hospitals])
    return fit(observed + _LEFT_OUT * observed.std(axis=0) * rng.normal(size=observed.shape), counts)


def claims(expected: Matrix, patients: int) -> list[int]:
    """Return one kind for each patient: repeatedly the kind with the largest remaining count."""
    left, claimed = expected.copy(), []
    for _ in range(patients):
        claimed.append(int(left.argmax()))
        left[claimed[-1]] -= 1
    return claimed


@cache
def edges(bins: int) -> tuple[float, ...]:
    """Return limits between this number of bins of the measure, all equally likely."""
    measures = [measure_of(patient) for patient in draw_patients(POOL_SEED, {"train": POOL})]
    return tuple(np.quantile(measures, np.arange(1, bins) / bins))
