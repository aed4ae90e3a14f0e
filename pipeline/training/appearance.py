"""Random changes of a scan's appearance for training, as between scanners: densities, sharpness, noise.

They act on the lung window of a prepared scan, -1 (-1000 HU) to 1 (200 HU), and stay inside it. Anatomy stays in place.
"""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

CHANCE = 0.5  # of each change
# Both ends of the window stay: air is -1000 HU on every scanner. Between them densities move by at most 66 HU, and the
# curve keeps its order: its slope is between 0.75 and 1.25.
CURVE = (0.08, 0.04)
# Weight of both neighbours along an axis; below 0 it sharpens.
NEIGHBOURS = (-0.1, 0.2)
NOISE = (0.0, 0.06)  # standard deviation, up to 36 HU
NOISE_NEIGHBOURS = (0.0, 0.25)


def appearance_changes(seed: int) -> Callable[[Tensor], Tensor]:
    """Return a function that changes images of shape (channels, slices, rows, columns) at random."""
    draws = torch.Generator().manual_seed(seed)

    def between(low: float, high: float) -> float:
        return low + (high - low) * float(torch.rand((), generator=draws))

    def is_chosen() -> bool:
        return between(0, 1) < CHANCE

    def change(image: Tensor) -> Tensor:
        if is_chosen():
            wide, narrow = (between(-most, most) for most in CURVE)
            turn = math.pi / 2 * (image.clamp(-1, 1) + 1)
            image = image + wide * torch.sin(turn) + narrow * torch.sin(2 * turn)
        if is_chosen():
            image = _with_neighbours(image, between(*NEIGHBOURS))
        if is_chosen():
            noise = _with_neighbours(torch.randn(image.shape, generator=draws), between(*NOISE_NEIGHBOURS))
            image = image + between(*NOISE) * noise / noise.std()
        return image.clamp(-1, 1)

    return change


def _with_neighbours(image: Tensor, weight: float) -> Tensor:
    """Return weighted means of each voxel and its neighbours, along the three axes in turn."""
    for axis in (2, 3, 4):
        kernel = torch.tensor([weight, 1 - 2 * weight, weight])
        shape, padding = [1, 1, 1, 1, 1], [0] * 6
        shape[axis] = 3
        padding[2 * (4 - axis)] = padding[2 * (4 - axis) + 1] = 1
        image = F.conv3d(F.pad(image[:, None], padding, mode="replicate"), kernel.reshape(shape))[:, 0]
    return image
