"""Attention over the instances of a scan: the slices of a 2.5D network, or the places of a 3D network's last maps.

Ilse, Tomczak & Welling, Attention-based deep multiple instance learning, ICML 2018: equation 8, or gated, equation 9.
"""

import torch
from torch import Tensor, nn


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
