"""Attention over the instances of a scan: the slices of a 2.5D network, or the places of a 3D network's last maps.

`Places` keeps the instances apart.

Ilse, Tomczak & Welling, Attention-based deep multiple instance learning, ICML 2018: equation 8, or gated, equation 9.
"""

import copy

import torch
from torch import Tensor, nn

from models.network_settings import CHANNELS, TABULAR


class Attention(nn.Module):
    """Computes weights of instances from their features. Subclasses call `_learn` once, after their own layers."""

    def _learn(self, features: int, *, is_gated: bool) -> None:
        """Create the layers. They have a hidden size of half the features."""
        hidden = max(1, features // 2)
        self.content = nn.Linear(features, hidden)
        self.gate = nn.Linear(features, hidden) if is_gated else None
        # A parameter of this module, not of a layer: so Opacus computes the gradient of the whole module for each
        # patient. For single layers it would treat each instance as a patient.
        self.importance = nn.Parameter(torch.randn(hidden) / hidden**0.5)

    def attention(self, instances: Tensor) -> Tensor:
        """Compute weights (batch, instances) from features (batch, instances, features); their sum is 1."""
        hidden = torch.tanh(self.content(instances))
        if self.gate is not None:
            hidden = hidden * torch.sigmoid(self.gate(instances))
        return torch.softmax(hidden @ self.importance, dim=1)


class PlaceAttention(Attention):
    """Pools maps (batch, features, slices, rows, columns) to features (batch, features) by attention over places."""

    def __init__(self, features: int, *, is_gated: bool) -> None:
        super().__init__()
        self._learn(features, is_gated=is_gated)

    def forward(self, maps: Tensor) -> Tensor:
        """Pool the maps of each scan."""
        places = maps.flatten(2).transpose(1, 2)
        return torch.einsum("bp,bpf->bf", self.attention(places), places)


class Places(nn.Module):
    """In place of a pooling: keeps maps (batch, features, slices, rows, columns) as (batch, places * features).

    All features of a place follow each other. The result has two dimensions, as that of every pooling, because the
    layers after it expect so.
    """

    def forward(self, maps: Tensor) -> Tensor:
        """Flatten the maps of each scan."""
        return maps.flatten(2).transpose(1, 2).flatten(1)


def shape_of_maps(network: nn.Module, shape: tuple[int, int, int]) -> tuple[int, int, int]:
    """Return the shape (slices, rows, columns) of the maps that a network with `Places` makes of scans of this shape.

    Nothing is computed: the scan is on torch's `meta` device. The network does not change.
    """
    network = copy.deepcopy(network).to("meta").eval()
    (places,) = (module for module in network.modules() if isinstance(module, Places))
    seen: list[torch.Size] = []
    with places.register_forward_pre_hook(lambda _, given: seen.append(given[0].shape)):
        network(torch.empty((1, CHANNELS, *shape), device="meta"), torch.empty((1, TABULAR), device="meta"))
    slices, rows, columns = seen[0][2:]
    return slices, rows, columns
