"""Finds a place where a scan continues with another body, as where images of two patients were joined."""

import numpy as np
from numpy.typing import NDArray

_EVERY = 8  # pixels along rows and columns
_NEIGHBOURS = 5  # distances before and after
# Times the usual difference of neighbouring slices, and HU. Whole scans of bodies reach 1.8 times and 95 HU, joined
# halves of two bodies have 4.6 times and 200 HU. Slices of 8 mm and more differ too much to be judged.
_MOST_TIMES, _MOST_HU = 3.0, 120.0


def has_seam(hu: NDArray[np.int16]) -> bool:
    """Whether two neighbouring slices differ much more than the slices around them. `hu`: (slices, rows, columns)."""
    some = hu[:, ::_EVERY, ::_EVERY].astype(np.float32)
    differences = np.abs(np.diff(some, axis=0)).mean(axis=(1, 2))
    for place in np.flatnonzero(differences > _MOST_HU):
        before, after = (
            differences[max(0, place - _NEIGHBOURS) : place],
            differences[place + 1 : place + 1 + _NEIGHBOURS],
        )
        if min(len(before), len(after)) and differences[place] > _MOST_TIMES * max(np.median(before), np.median(after)):
            return True
    return False
