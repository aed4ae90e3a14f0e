"""Small synthetic scans, and a network trained to find a lesion that is not the densest structure in the lungs."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.loss import masked_bce
from models.network import SeverityNetwork, build_network
from models.network_settings import TABULAR, NetworkSettings

SHAPE = (16, 24, 24)
EDGE = 5  # edge length of the lesion, voxels
LUNG, LESION, VESSEL, BODY = -0.85, -0.25, 0.1, 0.2  # values in the lung window, scaled to -1..1


@dataclass(frozen=True)
class Planted:
    """`scan`: (2, *SHAPE) float32. `lesion`: mask of the lesion, with the shape SHAPE."""

    scan: Tensor
    lesion: NDArray[np.bool_]


def plant(rng: np.random.Generator, *, with_lesion: bool) -> Planted:
    """Create two lungs with a thin vessel, denser than any lesion, and optionally a cube of ground glass."""
    lungs = np.zeros(SHAPE, dtype=bool)
    lungs[2:14, 4:20, 3:10] = lungs[2:14, 4:20, 14:21] = True
    window = np.where(lungs, LUNG, BODY) + rng.normal(0, 0.05, SHAPE)
    row, column = rng.integers(5, 19), rng.choice([*range(4, 9), *range(15, 20)])
    window[3:13, row, column] = VESSEL
    lesion = np.zeros(SHAPE, dtype=bool)
    if with_lesion:
        low = (rng.integers(2, 14 - EDGE), rng.integers(4, 20 - EDGE), rng.choice([3, 4, 5, 14, 15, 16]))
        lesion[tuple(slice(at, at + EDGE) for at in low)] = True
        window[lesion] = np.maximum(window[lesion], LESION)
    return Planted(torch.from_numpy(np.stack([window, lungs]).astype(np.float32)), lesion)


def learnt(settings: NetworkSettings, *, steps: int, seed: int = 0) -> SeverityNetwork:
    """Train a network to detect scans with a lesion, with both labels set alike. Takes some seconds."""
    network = build_network(settings, seed=seed).train()
    rng = np.random.default_rng(seed)
    optimiser = torch.optim.Adam(network.parameters(), lr=2e-3)
    for _ in range(steps):
        truths = rng.integers(0, 2, 16)
        scans = torch.stack([plant(rng, with_lesion=bool(truth)).scan for truth in truths])
        targets = torch.from_numpy(truths.astype(np.float32))[:, None].expand(-1, 2)
        optimiser.zero_grad()
        masked_bce(network(scans, torch.zeros(16, TABULAR)), targets).backward()
        optimiser.step()
    return network.eval()
