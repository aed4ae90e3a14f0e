"""What MONAI's ResNet lacks for training with differential privacy: group norm everywhere, and nothing in place.

Batch norm mixes the patients of a batch, so that no patient's own gradient exists; MONAI's `norm` argument reaches the
stem alone. And the hooks that take each patient's gradient cannot bear a layer's output that is changed afterwards.
"""

import math
from typing import Any

from monai.networks.nets.resnet import ResNetBlock
from torch import Tensor, nn

GROUPS = 8  # of channels that are normalised together; fewer where they do not divide the channels


class OutOfPlaceBlock(ResNetBlock):
    """MONAI's basic block: the same numbers, and no tensor is overwritten."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.act = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """`x` (batch, channels, slices, rows, columns) to the same with the block's channels and stride."""
        out = self.bn2(self.conv2(self.act(self.bn1(self.conv1(x)))))
        return self.act(out + (x if self.downsample is None else self.downsample(x)))


def replace_batch_norm(module: nn.Module) -> None:
    """Put group norm (Wu & He 2018) in the place of each batch norm within `module`, under the same name."""
    for name, child in module.named_children():
        if isinstance(child, nn.BatchNorm2d | nn.BatchNorm3d):
            channels = child.num_features
            setattr(module, name, nn.GroupNorm(math.gcd(GROUPS, channels), channels))
        else:
            replace_batch_norm(child)
