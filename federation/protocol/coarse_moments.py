"""Round moments of scans and features: keep of each float32 the first twelve bits after the leading one.

The site's app rounds them, and the gateway refuses values that are not rounded. Works without torch, for the gateway.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

MANTISSA_BITS = 12
_DROPPED = 23 - MANTISSA_BITS  # low bits of a float32's mantissa, set to zero


@dataclass(frozen=True)
class Range:
    """The magnitudes that may be reported: 0, and from 2**least to 2**most.

    `signed`: whether negative numbers are allowed.
    """

    least: int
    most: int
    signed: bool

    @property
    def points(self) -> int:
        """How many distinct numbers can be reported."""
        magnitudes = (self.most - self.least) * 2**MANTISSA_BITS + 1
        return magnitudes * (2 if self.signed else 1) + 1

    def rounded(self, values: NDArray[np.float32]) -> NDArray[np.float32]:
        """Round finite numbers to the reported precision; values beyond the range become its limit."""
        low = -(2.0**self.most) if self.signed else 0.0
        bits = np.clip(values, low, 2.0**self.most).astype(np.float32).view(np.uint32)
        half = np.uint32(1 << (_DROPPED - 1))
        kept = ((bits + half) >> np.uint32(_DROPPED) << np.uint32(_DROPPED)).view(np.float32)
        return np.where(np.abs(kept) < 2.0**self.least, np.float32(0), kept)

    def holds(self, values: NDArray[np.float32]) -> bool:
        """Tell whether all numbers are already rounded, bit by bit as `rounded` returns them."""
        return bool(np.isfinite(values).all()) and self.rounded(values).tobytes() == values.tobytes()


# The network's features are means of rectified activations; appearance features are shares and means of a window.
RANGES = {"mean": Range(-20, 10, signed=True), "variance": Range(-30, 20, signed=False)}
