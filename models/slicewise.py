"""Defines the 2.5D backbone: a 2D network encodes each slice, and attention weights the slices (`models.pooling`)."""

import torch
from torch import Tensor, nn

from models.pooling import Attention


class SlicesBackbone(Attention):
    """Encodes a scan by its slices. `encoder`: from 2D images (n, 2, rows, columns) to (n, features)."""

    def __init__(self, encoder: nn.Module, features: int, *, is_gated: bool = True) -> None:
        super().__init__()
        self.encoder = encoder
        self._learn(features, is_gated=is_gated)

    def forward(self, scan: Tensor) -> Tensor:
        """Encode `scan` (batch, 2, slices, rows, columns) to features (batch, features)."""
        slices = self.encode(scan)
        return torch.einsum("bs,bsf->bf", self.attention(slices), slices)

    def encode(self, scan: Tensor) -> Tensor:
        """Encode `scan` (batch, 2, slices, rows, columns) to features of its slices (batch, slices, features)."""
        images = scan.transpose(1, 2)
        return self.encoder(images.flatten(0, 1)).unflatten(0, images.shape[:2])
