"""A scan computed from formulas, with which sites check before a study that they preprocess scans in the same way.

It contains no patient data and no random numbers: two lungs, a lesion, bone, air around the body and in the stomach.
`prepare` processes it; the means of its tensor over blocks are rounded coarsely and hashed. Another processor adds in
another order and changes only the last digits, which rounding removes. Another method, window or library changes the
means. HU vary smoothly, so that no large part of the tensor is exactly between two numbers that it can hold.

If the settings ask for an external mask, that mask is computed too, from the two ellipsoids of lung: no site needs a
file for it.
"""

import hashlib
import json
from functools import cache

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from pipeline.imaging.lung_mask import LEFT, RIGHT, LungMask
from pipeline.imaging.volume import Volume, whole_hu
from pipeline.preprocessing.preprocess import prepare
from pipeline.preprocessing.preprocess_settings import EXTERNAL, SEGMENTER, Preprocessing

BLOCKS = (4, 4, 4)  # of each channel, along slices, rows and columns
STEP = 1 / 64  # rounding step of the tensor's values, which range from -1 to 1: about 9 HU of the usual window
# With the segmenter, the rounded numbers are moved by this share of a step, so that no mean is close to a border of
# rounding: where a processor rounds the network's answers differently, a voxel of the mask may change.
SEGMENTER_MOVE = 0.3388

_SHAPE = (96, 140, 164)  # slices, rows, columns
_SPACING_MM = (3.0, 2.2, 2.2)
_LUNGS = ((-1, 105.0), (1, 112.0))  # side and half of the height in mm: right and left
_MASK_RADIUS = 0.945  # with it, no mean of a block is close to a border of rounding


def golden_digest(settings: Preprocessing) -> str:
    """Return the SHA-256 (hex), equal at two sites that preprocess scans in the same way under these settings.

    Raises Refusal E_NO_LUNGS or E_NOT_A_WHOLE_CHEST if this installation does not find the lungs.
    """
    rounded = np.rint(block_steps(settings)).astype(int)
    text = json.dumps(rounded.tolist(), separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def block_steps(settings: Preprocessing) -> NDArray[np.float64]:
    """Return the means of blocks in steps, before they are rounded to whole steps."""
    return block_means(settings) / STEP - (SEGMENTER_MOVE if settings.method == SEGMENTER else 0.0)


def block_means(settings: Preprocessing) -> NDArray[np.float64]:
    """Return the means of the golden volume's tensor over blocks, shape (2, *BLOCKS)."""
    mask = golden_mask() if settings.method == EXTERNAL else None
    tensor = torch.from_numpy(prepare(golden_volume(), settings, mask).tensor.astype(np.float64))
    return F.adaptive_avg_pool3d(tensor[None], BLOCKS)[0].numpy()


def golden_volume() -> Volume:
    """Return the scan with the axes of DICOM: rows to the back, columns to the left, slices to the head."""
    return Volume(hu=_hu().copy(), affine=_affine())


@cache  # a simulation asks for it at each of its sites, and computing it takes longer than preparing it
def _hu() -> NDArray[np.int16]:
    z, y, x = _axes_mm()
    waves = 1 + 0.1 * np.sin(z / 17) + 0.1 * np.cos(y / 13) + 0.1 * np.sin(x / 19)
    hu = np.where((x / 165) ** 2 + (y / 112) ** 2 < 1, 43.0 * waves, -997.0)  # the body
    hu = np.where((x / 20) ** 2 + ((y - 75) / 20) ** 2 < 1, 310.0 * waves, hu)  # the spine
    lesion = ((z + 31) / 24) ** 2 + ((y - 20) / 27) ** 2 + ((x + 108) / 26) ** 2 < 1  # from lung to chest wall
    for side, height_mm in _LUNGS:
        hu = np.where(_lung(side, height_mm), np.where(lesion, -340.0 * waves, -873.0 + 0.6 * y + 31 * (waves - 1)), hu)
    hu = np.where(((z + 125) / 15) ** 2 + ((y + 40) / 22) ** 2 + ((x - 62) / 25) ** 2 < 1, -997.0, hu)  # the stomach
    return whole_hu(hu)


def golden_mask() -> LungMask:
    """Make the mask of its lungs, a little smaller than they are."""
    right, left = (_lung(side, height_mm, _MASK_RADIUS) for side, height_mm in _LUNGS)
    return LungMask(right * np.uint8(RIGHT) + left * np.uint8(LEFT), _affine())


def _lung(side: int, height_mm: float, radius: float = 1.0) -> NDArray[np.bool_]:
    """Return one lung; `side`: -1 for the right, 1 for the left one; `radius`: squared, 1 for the whole lung."""
    z, y, x = _axes_mm()
    squared: NDArray[np.float64] = ((z - 5) / height_mm) ** 2 + ((y + 3) / 77) ** 2 + ((x - side * 74) / 54) ** 2
    return squared < radius


def _axes_mm() -> tuple[NDArray[np.float64], ...]:
    axes = np.meshgrid(
        *((np.arange(n) - (n - 1) / 2) * step for n, step in zip(_SHAPE, _SPACING_MM, strict=True)),
        indexing="ij",
        sparse=True,
    )
    return tuple(axes)


def _affine() -> NDArray[np.float64]:
    up, back, left = _SPACING_MM
    return np.array([[0, 0, -left, 0], [0, -back, 0, 0], [up, 0, 0, 0], [0, 0, 0, 1]], np.float64)
