"""Tells in which range the true shares of ground glass and consolidation lie.

The limits were set on 120 random bodies of `pipeline.phantom.body`, so that the ranges contain the true share in 95 %
of them (split conformal prediction: Lei et al., JASA 2018; 113:1094; `benchmarks/lungs.py --limits 120`), and judged on
others: docs/lungs.md. They hold for the network that finds the lungs. They have not been measured in patients.
"""

import numpy as np
from numpy.typing import NDArray

from pipeline.preprocessing.lung_labels import Region
from pipeline.preprocessing.lung_regions import LungRegions
from pipeline.preprocessing.opacity import CONSOLIDATION_HU, Opacity

Ranges = dict[str, tuple[float, float]]  # "ground_glass", "consolidation": lowest and highest share, 0 to 1
# Times the dense tissue that is on the wrong side of the lungs' border on average, plus a least share.
CONSOLIDATION_TIMES, LEAST_CONSOLIDATION = 1.82, 0.002
# Times the share, plus a least share: what is faint or beside vessels is counted or not.
GROUND_GLASS_TIMES, LEAST_GROUND_GLASS = 0.24, 0.02


def ranges(
    hu: NDArray[np.float32],
    found: LungRegions,
    opacities: NDArray[np.uint8],
    measured: NDArray[np.bool_],
    both: Region,
) -> Ranges:
    """Return the range of each share of both lungs together; empty if nothing was measured.

    Parameters
    ----------
    hu : NDArray
        The scan on the working grid, shape (slices, rows, columns).
    found : LungRegions
        The lungs, from the segmenter.
    opacities, measured : NDArray
        From `lung_labels.count`: what each voxel counts as, and the voxels that shares refer to.
    both : Region
        The shares of both lungs.
    """
    if both.ground_glass is None or both.consolidation is None:
        return {}
    doubtful = doubtful_share(hu, found, opacities, measured)
    return {
        "ground_glass": _around(both.ground_glass, GROUND_GLASS_TIMES * (both.ground_glass + LEAST_GROUND_GLASS)),
        "consolidation": _around(both.consolidation, CONSOLIDATION_TIMES * (doubtful + LEAST_CONSOLIDATION)),
    }


def doubtful_share(
    hu: NDArray[np.float32], found: LungRegions, opacities: NDArray[np.uint8], measured: NDArray[np.bool_]
) -> float:
    """Return how much solid tissue is on the wrong side of the lungs' border on average, as a share of `measured`.

    A voxel that counts is wrong with the probability that it is no lung, one outside with the probability that it is.
    """
    low, high = CONSOLIDATION_HU
    inside = found.chances.sum(axis=0)
    outside = ~found.lungs & (hu >= low) & (hu < high)
    voxels = float((1 - inside[opacities == Opacity.CONSOLIDATION]).clip(0).sum() + inside[outside].sum())
    return voxels / max(1, int(np.count_nonzero(measured)))


def _around(share: float, half: float) -> tuple[float, float]:
    return round(max(0.0, share - half), 4), round(min(1.0, share + half), 4)
