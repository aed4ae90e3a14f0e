"""I3D: the Inception network of Szegedy et al. (CVPR 2015) with 3D filters, after Carreira & Zisserman (CVPR 2017).

Written from the publications: the channels of each block are those of GoogLeNet, the strides those of I3D. Batch norm
after each convolution, no bias. Padding is TensorFlow's "SAME" with zeros. The average before the last layer is over 2
slices and 7 x 7 places with a stride of 1, and then over all places.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Size = tuple[int, int, int]

# Channels of GoogLeNet's blocks 3a to 5b, which I3D calls 3b to 5c: the 1x1 branch, the reduction and the output of the
# first 3x3x3 branch, those of the second one (5x5 in GoogLeNet), and the branch after the pooling.
BLOCKS: tuple[tuple[tuple[int, ...], ...], ...] = (
    ((64, 96, 128, 16, 32, 32), (128, 128, 192, 32, 96, 64)),
    (
        (192, 96, 208, 16, 48, 64),
        (160, 112, 224, 24, 64, 64),
        (128, 128, 256, 24, 64, 64),
        (112, 144, 288, 32, 64, 64),
        (256, 160, 320, 32, 128, 128),
    ),
    ((256, 160, 320, 32, 128, 128), (384, 192, 384, 48, 128, 128)),
)
IMAGES = 3  # channels of the input; the scan is repeated in each


def _same(maps: Tensor, kernel: Size, stride: Size) -> Tensor:
    """Pad with zeros as TensorFlow's "SAME" does for lengths that are multiples of the stride."""
    pads: list[int] = []
    for length, step in zip(reversed(kernel), reversed(stride), strict=True):
        missing = max(length - step, 0)
        pads += [missing // 2, missing - missing // 2]
    return F.pad(maps, pads)


class Convolution(nn.Module):
    """Convolution, batch norm, ReLU."""

    def __init__(self, before: int, after: int, length: int, step: int = 1) -> None:
        super().__init__()
        self.kernel, self.stride = (length, length, length), (step, step, step)
        self.convolution = nn.Conv3d(before, after, length, stride=step, bias=False)
        self.norm = nn.BatchNorm3d(after)

    def forward(self, maps: Tensor) -> Tensor:
        return F.relu(self.norm(self.convolution(_same(maps, self.kernel, self.stride))))


class Pooling(nn.Module):
    """The largest of neighbouring places, with zeros beyond the edge."""

    def __init__(self, kernel: Size, stride: Size) -> None:
        super().__init__()
        self.kernel, self.stride = kernel, stride

    def forward(self, maps: Tensor) -> Tensor:
        padded = _same(maps, self.kernel, self.stride)
        return F.max_pool3d(padded, self.kernel, self.stride, ceil_mode=True)


class Block(nn.Module):
    """Four branches side by side."""

    def __init__(self, before: int, channels: tuple[int, ...]) -> None:
        super().__init__()
        one, reduced, three, reduced_again, three_again, pooled = channels
        self.branches = nn.ModuleList(
            [
                Convolution(before, one, 1),
                nn.Sequential(Convolution(before, reduced, 1), Convolution(reduced, three, 3)),
                nn.Sequential(Convolution(before, reduced_again, 1), Convolution(reduced_again, three_again, 3)),
                nn.Sequential(Pooling((3, 3, 3), (1, 1, 1)), Convolution(before, pooled, 1)),
            ]
        )
        self.after = one + three + three_again + pooled

    def forward(self, maps: Tensor) -> Tensor:
        return torch.cat([branch(maps) for branch in self.branches], dim=1)


class InflatedInception(nn.Module):
    """Maps scans (batch, 1, slices, rows, columns) to logits (batch, outputs). `width`: share of the usual channels."""

    def __init__(self, outputs: int, *, width: float = 1.0) -> None:
        super().__init__()

        def narrow(channels: int) -> int:
            return max(1, round(channels * width))

        first, second = narrow(64), narrow(192)
        layers: list[nn.Module] = [
            Convolution(IMAGES, first, 7, step=2),
            Pooling((1, 3, 3), (1, 2, 2)),
            Convolution(first, first, 1),
            Convolution(first, second, 3),
            Pooling((1, 3, 3), (1, 2, 2)),
        ]
        before = second
        for number, stage in enumerate(BLOCKS):
            if number:
                layers.append(Pooling((3, 3, 3) if number == 1 else (2, 2, 2), (2, 2, 2)))
            for channels in stage:
                layers.append(block := Block(before, tuple(map(narrow, channels))))
                before = block.after
        self.layers = nn.Sequential(*layers)
        self.head = nn.Linear(before, outputs)

    def forward(self, scans: Tensor) -> Tensor:
        maps = self.layers(scans.expand(-1, IMAGES, -1, -1, -1))
        slices, rows, columns = maps.shape[2:]
        kernel = (min(2, slices), min(7, rows), min(7, columns))
        return self.head(F.avg_pool3d(maps, kernel, stride=1).mean(dim=(2, 3, 4)))
