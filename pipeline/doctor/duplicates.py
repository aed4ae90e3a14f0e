"""Find one scan under two patients, even if the files differ: another reconstruction, export or crop.

Lungs of different people have similar shapes but different vessels. The method subtracts the local mean of the lung and
correlates the remaining detail, on the cached tensors.

On synthetic hospitals (26 822 pairs of different bodies, four scanners) the correlation of two bodies was below 0.45.
The same body with other noise, a sharp or soft kernel, other spacing or 15 mm less of it gave 0.61 or more (64 bodies
each). A real thorax with the same changes gave 0.68 or more, and below 0.1 against synthetic ones. A scan that lacks a
large part of the other is not recognised, because its crop differs.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from pipeline.cohort.tensor_files import load_tensor
from pipeline.preprocessing.preprocess import resample

LEAST_CORRELATION = 0.6
_LOCAL = 4  # voxels over which the local mean is computed
_INSIDE = 0.9  # share of lung in a voxel


def near_duplicates(tensors: Sequence[Path], *, block_size: int = 256) -> Iterator[tuple[int, int, float]]:
    """Yield pairs of indices in `tensors` whose lungs show the same vessels, with their correlation.

    The tensors come from `prepare` and have one shape. `block_size`: number of tensors that are compared with
    all others at once, which bounds the memory.
    """
    details = _details(tensors)
    for start in range(0, len(details), block_size):
        block = details[start : start + block_size]
        alike = block @ details[start:].T
        for i, j in np.argwhere(np.triu(alike > LEAST_CORRELATION, k=1)):
            yield int(start + i), int(start + j), round(float(alike[i, j]), 2)


def _details(tensors: Sequence[Path]) -> NDArray[np.float32]:
    """Return one row of details for each tensor."""
    if not tensors:
        return np.zeros((0, 1), np.float32)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # small tensors: with threads this takes ten times as long
    try:
        return np.stack([_detail(load_tensor(path)) for path in tensors])
    finally:
        torch.set_num_threads(threads)


def _detail(tensor: NDArray[np.float16]) -> NDArray[np.float32]:
    """Return the individual detail of a lung as a vector of length 1 (0 if there is no lung)."""
    image, mask = torch.from_numpy(tensor.astype(np.float32))
    inside = (mask > _INSIDE).float()
    coarse = tuple(max(1, size // _LOCAL) for size in image.shape)

    def smooth(x: torch.Tensor) -> torch.Tensor:
        return resample(F.adaptive_avg_pool3d(x[None, None], coarse)[0, 0], image.shape)

    local_mean = smooth(image * inside) / smooth(inside).clamp_min(1e-3)
    detail: NDArray[np.float32] = F.avg_pool3d(((image - local_mean) * inside)[None], 2).numpy().ravel()
    detail -= detail.mean()
    detail /= max(float(np.linalg.norm(detail)), 1e-6)
    return detail
