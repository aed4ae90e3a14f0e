"""The 2.5D backbone: a 2D network reads slice by slice, and gated attention says how much each slice counts.

Attention-based pooling with a gate: Ilse, Tomczak & Welling, Attention-based deep multiple instance learning, ICML
2018, equation 9. The bag is the scan, its instances are the slices.
"""

import torch
from torch import Tensor, nn


class SlicesBackbone(nn.Module):
    """A scan to features through those of its slices. `encoder`: 2D images (n, 2, rows, columns) to (n, features)."""

    def __init__(self, encoder: nn.Module, features: int) -> None:
        super().__init__()
        self.encoder = encoder
        hidden = max(1, features // 2)
        self.content = nn.Linear(features, hidden)
        self.gate = nn.Linear(features, hidden)
        # A parameter of this module itself, not of a layer, and so Opacus takes the gradient of the module as a whole:
        # each patient's own. Were each layer asked, it would take a slice for a patient.
        self.importance = nn.Parameter(torch.randn(hidden) / hidden**0.5)

    def forward(self, scan: Tensor) -> Tensor:
        """`scan` (batch, 2, slices, rows, columns) to its features (batch, features)."""
        slices = self.encode(scan)
        return torch.einsum("bs,bsf->bf", self.attention(slices), slices)

    def encode(self, scan: Tensor) -> Tensor:
        """`scan` as above to the features of its slices (batch, slices, features)."""
        images = scan.transpose(1, 2)
        return self.encoder(images.flatten(0, 1)).unflatten(0, images.shape[:2])

    def attention(self, slices: Tensor) -> Tensor:
        """Features of slices (batch, slices, features) to how much each counts (batch, slices); their sum is 1."""
        gated = torch.tanh(self.content(slices)) * torch.sigmoid(self.gate(slices))
        return torch.softmax(gated @ self.importance, dim=1)
