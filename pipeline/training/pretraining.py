"""Pretraining on scans without their labels: the network learns to estimate measures of each scan's lungs.

In `hidden_blocks` it learns to estimate hidden parts of the scan instead. The targets are computed from the prepared
scan and its lung mask, each time that a batch is made: they follow the augmentation's flip and zoom, and no file holds
them. Label, age and sex of a patient are not used: the network sees both as unknown.
"""

from collections.abc import Callable, Sequence
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.loss import MEASURE_REACH
from models.network_settings import AUXILIARY
from pipeline.cohort.dataset import Batch, Example, Examples
from pipeline.cohort.tensor_files import load_tensor
from pipeline.preprocessing.opacity import CONSOLIDATION_HU, GROUND_GLASS_HU

# A measure minus its usual value, in units of its usual spread. The numbers only bring all targets to the order of one,
# and are the same at every hospital: means of 14 synthetic patients of the hospital "north" with the default
# preprocessing, rounded, and spreads with which a lung that is dense everywhere is still told from one that is so by
# half. Opacity is the square root of a share. On a grid of 4 mm it is higher than that of healthy lungs in a CT's own
# voxels, 0.2 (`opacity.HEALTHY_DENSE`), because voxels at vessels and at the lungs' border are mixed.
OPACITY = (0.5, 0.2)
VOLUME = (0.14, 0.04)
MEAN_HU = (-760.0, 75.0)
INSIDE = 0.5  # of the lung mask, whose values between 0 and 1 are those of partly filled voxels


class PretrainingExamples(Examples):
    """Scans with targets for pretraining. `targets` of the examples themselves, the labels, are all missing."""

    def __init__(self, examples: Sequence[Example], window_hu: tuple[float, float]) -> None:
        """`window_hu`: of the preprocessing. Raises ValueError if an example has a label, age or sex."""
        super().__init__(examples)
        if self.tabular.any() or not np.isnan(self.targets).all():
            raise ValueError("pretraining uses no label, age or sex")
        self._window_hu = window_hu

    def batch(self, index: NDArray[np.int64], augment: Callable[[Tensor], Tensor] | None) -> Batch:
        """Return scans (batch, 2, slices, rows, columns) float32, tabular (batch, 4), targets (batch, ...).

        `tabular` holds zeros. `augment` moves a copy of the image together with the scan and its mask, and changes the
        values of the first channel alone. So the targets are those of the moved scan, without its changed densities and
        noise.
        """
        scans, targets = [], []
        for place in index:
            scan = torch.from_numpy(load_tensor(self.examples[place].tensor)).float()
            moved = torch.cat([scan, scan[:1]])
            moved = moved if augment is None else augment(moved)
            seen, target = self._task(moved[:2], in_hu(moved[2], self._window_hu))
            scans.append(seen)
            targets.append(target)
        return torch.stack(scans), torch.from_numpy(self.tabular[index]), torch.stack(targets)

    def _task(self, scan: Tensor, hu: Tensor) -> tuple[Tensor, Tensor]:
        """Return what the network sees of a moved scan (2, slices, rows, columns), and what it learns of it.

        `hu`: the moved image without changed densities.
        """
        return scan, measures(hu, scan[1])


def in_hu(image: Tensor, window_hu: tuple[float, float]) -> Tensor:
    """Return an image, which is the lung window scaled to -1..1, in HU."""
    low, high = window_hu
    return (image + 1) / 2 * (high - low) + low


def measures(hu: Tensor, mask: Tensor) -> Tensor:
    """Return the measures of one scan, in the order of AUXILIARY, standardised; NaN where a zone holds no lung.

    `hu`: the image, limited to the lung window; `mask`: of the lungs, 0..1; both (slices, rows, columns), with axes
    towards the head, the back and the patient's left. Right and left are divided in the middle of the lungs' extent,
    zones are thirds of their height. Volumes are shares of the tensor: its box is scaled to the lungs, so millilitres
    cannot be seen in it. Dense lung has the densities of ground glass and consolidation, vessels included, after the
    alignment of the aerated lung.
    """
    inside = mask > INSIDE
    dense = inside & (hu >= GROUND_GLASS_HU[0]) & (hu < CONSOLIDATION_HU[1])
    found = [standardised(_share(dense[zone], inside[zone]).sqrt(), OPACITY) for zone in _zones(inside)]
    right, left = _sides(inside)
    found += [standardised(inside[..., side].sum() / inside.numel(), VOLUME) for side in (right, left)]
    found.append(standardised(hu[inside].mean(), MEAN_HU))  # NaN without lungs
    assert len(found) == len(AUXILIARY)
    return torch.stack(found)


def _zones(inside: Tensor) -> list[tuple[slice, slice, slice]]:
    """Return the six zones of the lungs: thirds of the height from below, of the right side, then of the left one."""
    bottom, top = _extent(inside, axis=0)
    cuts = [bottom + round(third * (top - bottom) / 3) for third in range(4)]
    thirds = [slice(start, end) for start, end in pairwise(cuts)]
    return [(third, slice(None), side) for side in _sides(inside) for third in thirds]


def _sides(inside: Tensor) -> tuple[slice, slice]:
    """Return the columns of the right and of the left side."""
    first, last = _extent(inside, axis=2)
    middle = (first + last) // 2
    return slice(0, middle), slice(middle, None)


def _extent(inside: Tensor, *, axis: int) -> tuple[int, int]:
    """Return the first index of the lungs along an axis, and the one after the last; all of it without lungs."""
    others = tuple(each for each in range(inside.ndim) if each != axis)
    hit = torch.nonzero(inside.sum(dim=others))
    return (int(hit[0]), int(hit[-1]) + 1) if len(hit) else (0, inside.shape[axis])


def _share(part: Tensor, whole: Tensor) -> Tensor:
    return part.sum() / whole.sum()  # NaN if there is nothing


def standardised(value: Tensor, usual: tuple[float, float]) -> Tensor:
    """Return a measure minus its usual value, in units of its usual spread, at most MEASURE_REACH from 0."""
    centre, spread = usual
    return ((value - centre) / spread).clamp(-MEASURE_REACH, MEASURE_REACH)
