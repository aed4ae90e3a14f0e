"""Adapts MONAI's layers to training with differential privacy: group norm everywhere, no in-place operations.

Batch norm mixes the patients of a batch, so there is no gradient per patient; MONAI's `norm` argument changes only the
stem. The hooks that compute gradients per patient do not work if a layer's output is modified in place.
"""

import math
from typing import Any

from monai.networks.nets.resnet import ResNetBlock
from torch import Tensor, nn

GROUPS = 8  # groups of channels; fewer if this does not divide the number of channels


class OutOfPlaceBlock(ResNetBlock):
    """MONAI's basic block with the same result, but without in-place operations."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.act = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """Apply the block to `x` (batch, channels, slices, rows, columns)."""
        out = self.bn2(self.conv2(self.act(self.bn1(self.conv1(x)))))
        return self.act(out + (x if self.downsample is None else self.downsample(x)))


def replace_batch_norm(module: nn.Module) -> None:
    """Replace each batch norm in `module` by group norm (Wu & He 2018), under the same name."""
    for name, child in module.named_children():
        if isinstance(child, nn.BatchNorm2d | nn.BatchNorm3d):
            channels = child.num_features
            setattr(module, name, nn.GroupNorm(math.gcd(GROUPS, channels), channels))
        else:
            replace_batch_norm(child)


def norm_without_weights(channels: int, is_grouped: bool) -> nn.Module:
    """Return a 3D batch norm or a group norm that has no scale and shift."""
    if is_grouped:
        return nn.GroupNorm(math.gcd(GROUPS, channels), channels, affine=False)
    return nn.BatchNorm3d(channels, affine=False)
