"""Tests gradient inversion: whether an attacker, above all the server, can reconstruct a scan from an update.

The attacker searches for scans whose gradient has the direction of the update (cosine, with a penalty on total
variation: Geiping et al., NeurIPS 2020). If batch-norm buffers are sent too, the scans must also have the means and
variances in each layer that the buffers reveal (Hatamizadeh et al., IEEE TMI 2023). The attacker is given labels, age
and sex, which a real attacker would have to guess.
"""

import copy
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.attacks import Control
from models.loss import masked_bce
from models.network_settings import CHANNELS, LABELS, TABULAR

STEP_SIZE = 0.1
# For each start: the weight of total variation, and the weight of the batch-norm moments.
STARTS = ((1e-5, 0.0), (1e-2, 0.0), (1e-2, 1e-2))
RANGE = 2.0  # of the lung window, -1..1
CONTROL_DB = 30.0
CONTROL_SIDE, CONTROL_STEPS = 12, 250  # voxels, steps

BatchNorm = nn.BatchNorm2d | nn.BatchNorm3d
Moments = Mapping[str, tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Seen:
    """What an attacker sees: the direction of a gradient, shape (parameters,), and the moments of each batch norm.

    `moments` is empty if there is no batch norm or its buffers were not seen.
    """

    gradient: Tensor
    moments: Moments


@dataclass(frozen=True)
class Match:
    """The best reconstruction of a scan, in dB, and reference values without any attack."""

    best_db: float
    constant_db: float
    typical_db: float

    @property
    def gain_db(self) -> float:
        """Gain over the constant image, which needs no information from the update."""
        return self.best_db - self.constant_db


def seen_gradient(network: nn.Module, scans: Tensor, tabular: Tensor, targets: Tensor) -> Seen:
    """Return the raw gradient of one step; the network keeps its mode (training or evaluation)."""
    return Seen(_gradient(network, scans, tabular, targets).detach(), {})


def seen_update(before: nn.Module, after: nn.Module) -> Seen:
    """Return what an update reveals: the change of the weights, and the moments of the batches from the buffers.

    At each step PyTorch's batch norm sets running = (1 - momentum) * running + momentum * batch, and counts the steps.
    """
    changes = [old - new for old, new in zip(_learnt(before), _learnt(after), strict=True)]
    later = _batch_norms(after)
    moments = {name: _between(norm, later[name]) for name, norm in _batch_norms(before).items()}
    return Seen(torch.cat([change.detach().flatten() for change in changes]), moments)


def _batch_norms(network: nn.Module) -> dict[str, BatchNorm]:
    return {name: module for name, module in network.named_modules() if isinstance(module, BatchNorm)}


def _between(before: BatchNorm, after: BatchNorm) -> tuple[Tensor, Tensor]:
    assert before.momentum and before.running_mean is not None and before.running_var is not None
    assert before.num_batches_tracked is not None and after.num_batches_tracked is not None
    assert after.running_mean is not None and after.running_var is not None
    kept = (1 - before.momentum) ** int(after.num_batches_tracked - before.num_batches_tracked)
    mean = (after.running_mean - kept * before.running_mean) / (1 - kept)
    return mean, (after.running_var - kept * before.running_var) / (1 - kept)


def _learnt(network: nn.Module) -> list[nn.Parameter]:
    """Return the weights that training changes."""
    return [weight for weight in network.parameters() if weight.requires_grad]


def _gradient(network: nn.Module, scans: Tensor, tabular: Tensor, targets: Tensor, *, keep: bool = False) -> Tensor:
    loss = masked_bce(network(scans, tabular), targets)
    gradients = torch.autograd.grad(loss, _learnt(network), create_graph=keep)
    return torch.cat([gradient.flatten() for gradient in gradients])


def invert(
    network: nn.Module,
    seen: Seen,
    tabular: Tensor,
    targets: Tensor,
    shape: tuple[int, int, int],
    *,
    steps: int,
    start: int,
) -> Tensor:
    """Reconstruct scans (batch, 2, *shape) that explain what was seen, one for each row of `targets` (batch, 2).

    Starts from noise and uses Adam on the sign of the gradient, as in Geiping et al. `start` selects one of STARTS and
    seeds the noise.
    """
    smoothness, trust_in_moments = STARTS[start]
    network = copy.deepcopy(network)
    noise = torch.Generator().manual_seed(start)
    scans = (0.1 * torch.randn((len(targets), CHANNELS, *shape), generator=noise)).requires_grad_()
    found = watch_moments(network, seen.moments)
    optimiser = torch.optim.Adam([scans], lr=STEP_SIZE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    for _ in range(steps):
        gradient = _gradient(network, scans, tabular, targets, keep=True)
        misfit = 1 - F.cosine_similarity(gradient, seen.gradient, dim=0)
        misfit = misfit + smoothness * _total_variation(scans)
        misfit = misfit + trust_in_moments * moments_misfit(found, seen.moments)
        scans.grad = torch.autograd.grad(misfit, [scans])[0].sign()
        optimiser.step()
        schedule.step()
        with torch.no_grad():
            scans.clamp_(-1, 1)
    return scans.detach()


def watch_moments(network: nn.Module, names: Iterable[str]) -> dict[str, tuple[Tensor, Tensor]]:
    """Return a table with the mean and variance of the inputs of these layers, updated at each forward pass."""
    found: dict[str, tuple[Tensor, Tensor]] = {}

    def note(name: str, inputs: tuple[Tensor, ...]) -> None:
        variance, mean = torch.var_mean(inputs[0], dim=(0, *range(2, inputs[0].ndim)))
        found[name] = (mean, variance)

    for name in names:
        layer = network.get_submodule(name)
        layer.register_forward_pre_hook(lambda _, inputs, name=name: note(name, inputs))
    return found


def _total_variation(scans: Tensor) -> Tensor:
    return torch.stack([torch.diff(scans, dim=axis).abs().mean() for axis in (2, 3, 4)]).sum()


def moments_misfit(found: Moments, reported: Moments) -> Tensor:
    """Return the mean over layers of the squared distances of means and variances, in units of the seen variance."""
    if not reported:
        return torch.zeros(())
    layers = []
    for name, (mean, variance) in reported.items():
        scale = variance.clamp(min=1e-6)
        layers.append((((found[name][0] - mean) ** 2) / scale).mean() + ((found[name][1] / scale - 1) ** 2).mean())
    return torch.stack(layers).mean()


def compare(drawn: Tensor, scans: Tensor, typical: Tensor) -> Match:
    """Find the pair of a reconstruction and a scan with the largest gain, including mirrored reconstructions.

    `drawn` (reconstructions, ...), `scans` (scans, ...) and `typical` (...), the mean of other scans, have the shape
    (2, slices, rows, columns); only the lung window is compared. Peak signal-to-noise ratio with RANGE as the peak.
    """
    truth = scans[:, 0].flatten(1)
    either_way = torch.cat([drawn[:, 0], drawn[:, 0].flip(-1)]).flatten(1)
    best = _db(torch.cdist(either_way, truth) ** 2 / truth.shape[1]).amax(dim=0)
    constant = _db(truth.var(dim=1, correction=0))
    known = _db(((truth - typical[0].flatten()) ** 2).mean(dim=1))
    which = int((best - constant).argmax())
    return Match(float(best[which]), float(constant[which]), float(known[which]))


def _db(squared_error: Tensor) -> Tensor:
    return 10 * torch.log10(RANGE**2 / squared_error.clamp(min=1e-12))


class ControlNetwork(nn.Module):
    """Two smooth convolutions with group norm, and a head on every voxel; its gradient reveals its input."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv3d(CHANNELS, 8, 5, padding=2),
            nn.GroupNorm(4, 8),
            nn.SiLU(),
            nn.Conv3d(8, 8, 3, padding=1),
            nn.GroupNorm(4, 8),
            nn.SiLU(),
            nn.Flatten(),
        )
        self.head = nn.Linear(8 * CONTROL_SIDE**3 + TABULAR, len(LABELS))

    def forward(self, scan: Tensor, tabular: Tensor) -> Tensor:
        """Compute logits as `SeverityNetwork.forward` does."""
        return self.head(torch.cat([self.layers(scan), tabular], dim=1))


def control(*, seed: int = 0) -> Control:
    """Run the attack where it must succeed: a small synthetic scan, its raw gradient, a small network; some seconds."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = ControlNetwork()
        scan = _lungs()
    tabular, targets = torch.ones(1, TABULAR), torch.ones(1, len(LABELS))
    seen = seen_gradient(network, scan, tabular, targets)
    side = CONTROL_SIDE
    drawn = invert(network, seen, tabular, targets, (side, side, side), steps=CONTROL_STEPS, start=0)
    return Control(value=compare(drawn, scan, torch.zeros_like(scan[0])).best_db, needed=CONTROL_DB)


def _lungs() -> Tensor:
    """Make two dark ellipsoids with coarse noise, and their mask, (1, 2, side, side, side)."""
    z, y, x = torch.meshgrid(*3 * [torch.linspace(-1, 1, CONTROL_SIDE)], indexing="ij")
    distance = ((x.abs() - 0.45) / 0.4) ** 2 + (y / 0.7) ** 2 + (z / 0.85) ** 2
    mask = (distance < 1).float()
    coarse = F.interpolate(torch.randn(1, 1, 4, 4, 4), size=mask.shape, mode="trilinear")[0, 0]
    return torch.stack([(0.6 - 1.3 * mask + 0.25 * coarse).clamp(-1, 1), mask])[None]
