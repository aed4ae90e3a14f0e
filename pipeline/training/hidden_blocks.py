"""Masked pretraining: blocks of the scan are hidden, and the network learns to estimate their density from the rest.

As in SimMIM (Xie et al., CVPR 2022): blocks drawn at random are hidden in the input, nothing else is changed, the loss
counts only what is hidden, and the decoder is one linear layer at each place of the encoder's last maps. SimMIM
estimates every voxel of a block. Here the target is the mean density of the lung in the block, so that the decoder has
a thousand weights and its update tells little of a scan. A hidden block has a constant density instead of a learnt one:
no weight is added. As in SimMIM, and unlike SparK (Tian et al., ICLR 2023), convolutions read the hidden blocks too.

The lung mask stays visible. It tells where the lung is whose density is to be estimated, and not how dense it is.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from pipeline.cohort.dataset import Example
from pipeline.training.pretraining import INSIDE, PretrainingExamples, standardised

Shape = tuple[int, int, int]

HIDDEN = 0.5  # share of the blocks
FILL = 0.0  # what the network sees of a hidden block: the middle of the lung window
# The usual density of the lung in a block, and a spread, in HU: see `pretraining.OPACITY`.
BLOCK_HU = (-720.0, 140.0)
_LEAST_LUNG = 0.1  # share of a block that must be lung
_SPLIT = 2  # blocks along each axis of a place's part of the scan: 8 in all, `BLOCKS`
_DRAW = 0x6D61736B  # keeps the draw of blocks apart from that of the order of patients


class BlockExamples(PretrainingExamples):
    """Scans with hidden blocks, and the densities of these blocks as targets.

    A place of the encoder's last maps stands for an equal part of the scan, and this part is divided into eight blocks.
    """

    def __init__(self, examples: Sequence[Example], window_hu: tuple[float, float], *, maps: Shape, seed: int) -> None:
        """`maps`: shape of the encoder's last maps. `seed`: of the hidden blocks; they also depend on the batches'
        order. A seed that the server does not know keeps it from knowing what is hidden (`order_seed`).

        Raises ValueError if an example has a label, age or sex.
        """
        super().__init__(examples, window_hu)
        self._grid: Shape = (_SPLIT * maps[0], _SPLIT * maps[1], _SPLIT * maps[2])
        self._rng = np.random.default_rng((_DRAW, seed))

    def _task(self, scan: Tensor, hu: Tensor) -> tuple[Tensor, Tensor]:
        """Return the scan with hidden blocks, and their densities, shape (places, 8)."""
        hidden = self._draw()
        density = standardised(block_hu(hu, scan[1], self._grid), BLOCK_HU)
        seen = scan.clone()
        seen[0][in_voxels(hidden, scan.shape[1:])] = FILL
        return seen, by_place(density.where(hidden, torch.nan))

    def _draw(self) -> Tensor:
        """Return which blocks of the grid are hidden."""
        hidden = np.zeros(int(np.prod(self._grid)), dtype=bool)
        hidden[self._rng.permutation(len(hidden))[: round(HIDDEN * len(hidden))]] = True
        return torch.from_numpy(hidden.reshape(self._grid))


def block_hu(hu: Tensor, mask: Tensor, grid: Shape) -> Tensor:
    """Return the mean HU of the lung in each block, shape `grid`; NaN where a block holds hardly any lung.

    `hu`, `mask`: (slices, rows, columns), as `measures` has them.
    """
    inside = (mask > INSIDE).float()
    lung, voxels = _sums(inside, grid), _sums(torch.ones_like(inside), grid)
    return (_sums(hu * inside, grid) / lung).where(lung >= _LEAST_LUNG * voxels, torch.nan)


def in_voxels(blocks: Tensor, shape: Sequence[int]) -> Tensor:
    """Return the value of each voxel's block; `blocks` has the shape of the grid, the result `shape`."""
    z, y, x = (_block_of(size, count) for size, count in zip(shape, blocks.shape, strict=True))
    return blocks[z][:, y][:, :, x]


def by_place(blocks: Tensor) -> Tensor:
    """Return a value of each block, with the shape of the grid, as (places, 8), in the order of the network's outputs.

    Places are in the order of the maps, their blocks in that of `BLOCKS`.
    """
    z, y, x = (size // _SPLIT for size in blocks.shape)
    apart = blocks.reshape(z, _SPLIT, y, _SPLIT, x, _SPLIT)
    return apart.permute(0, 2, 4, 1, 3, 5).reshape(z * y * x, _SPLIT**3)


def _sums(values: Tensor, grid: Shape) -> Tensor:
    """Sum values of voxels (slices, rows, columns) over each block."""
    for count in grid:
        member = torch.nn.functional.one_hot(_block_of(len(values), count), count).to(values.dtype)
        values = torch.tensordot(values, member, dims=([0], [0]))  # moves the axis to the end
    return values


def _block_of(size: int, count: int) -> Tensor:
    """Return the block of each index of an axis: `count` blocks of equal length, to within one voxel."""
    return torch.arange(size) * count // size
