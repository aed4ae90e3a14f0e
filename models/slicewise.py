"""Defines the 2.5D backbone: a 2D network encodes each slice, and gated attention weights the slices.

Gated attention-based pooling: Ilse, Tomczak & Welling, Attention-based deep multiple instance learning, ICML 2018,
equation 9. The bag is the scan, its instances are the slices.
"""

import torch
from torch import Tensor, nn


class SlicesBackbone(nn.Module):
    """Encodes a scan by its slices. `encoder`: from 2D images (n, 2, rows, columns) to (n, features)."""

    def __init__(self, encoder: nn.Module, features: int) -> None:
        super().__init__()
        self.encoder = encoder
        hidden = max(1, features // 2)
        self.content = nn.Linear(features, hidden)
        self.gate = nn.Linear(features, hidden)
        # A parameter of this module, not of a layer: so Opacus computes the gradient of the whole module for each
        # patient. For single layers it would treat each slice as a patient.
        self.importance = nn.Parameter(torch.randn(hidden) / hidden**0.5)

    def forward(self, scan: Tensor) -> Tensor:
        """Encode `scan` (batch, 2, slices, rows, columns) to features (batch, features)."""
        slices = self.encode(scan)
        return torch.einsum("bs,bsf->bf", self.attention(slices), slices)

    def encode(self, scan: Tensor) -> Tensor:
        """Encode `scan` (batch, 2, slices, rows, columns) to features of its slices (batch, slices, features)."""
        images = scan.transpose(1, 2)
        return self.encoder(images.flatten(0, 1)).unflatten(0, images.shape[:2])

    def attention(self, slices: Tensor) -> Tensor:
        """Compute weights of slices (batch, slices) from their features (batch, slices, features); their sum is 1."""
        gated = torch.tanh(self.content(slices)) * torch.sigmoid(self.gate(slices))
        return torch.softmax(gated @ self.importance, dim=1)
