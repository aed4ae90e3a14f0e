"""Measures the air around the patient, and tells gas in the bowel from lung by it.

A lung is never as thin as air. In the least dense lung, with emphysema, tissue and blood still add 20 HU and more; only
large bullae are air. Gas in the bowel is air: in a real abdomen its median was within 10 HU of that of the air around
the patient.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.refusal import Refusal
from pipeline.imaging.ct_slice import AIR_HU
from pipeline.preprocessing.lungs import AIR_BELOW_HU
from pipeline.preprocessing.reasons import NOT_LUNG

OUTSIDE_BELOW_HU = -700
BORDER = 1 / 32  # of the image's width
LEAST_SAMPLE = 0.1  # share of a border of the image; a smaller share is not a sample of air
SLICES = 16  # about a hundred thousand voxels of air; more slices give the same median
USUAL_AIR_HU = -1000.0  # where no air around the patient is visible
AS_THIN_HU = 20.0
# Share of the air in the lungs: 0.005 in a real thorax, at most 0.19 in 251 of 252 synthetic chests (0.37 in one, whose
# median is refused too), 0.42 and more in abdomens full of gas. Bullae are called giant from a third of one lung on.
MOST_GAS = 0.4


def air_around(hu: NDArray[np.int16], lungs: NDArray[np.bool_]) -> float | None:
    """Return the lowest median HU of air at the borders of the image; None if no border shows air.

    `lungs`: on any grid with the same outer faces. A border that they reach, where a small field of view cuts them,
    shows lung instead of air. Others may be filled by the patient or by padding.
    """
    some = hu[:: max(1, len(hu) // SLICES)]
    medians = []
    for border, near in zip(_borders(some, BORDER), _borders(lungs, 2 * BORDER), strict=True):
        air = border[(border > AIR_HU) & (border < OUTSIDE_BELOW_HU)]  # padding is exactly AIR_HU
        if air.size >= LEAST_SAMPLE * border.size and not near.any():
            medians.append(float(np.median(air)))
    return round(min(medians), 1) if medians else None


def _borders(volume: NDArray[Any], width: float) -> list[NDArray[Any]]:
    """Return the strips at front, back, right and left whose width is a share of the image."""
    rows, columns = (max(1, int(size * width)) for size in volume.shape[1:])
    return [volume[:, :rows], volume[:, -rows:], volume[:, :, :columns], volume[:, :, -columns:]]


def gas_share(hu: NDArray[np.float32], lungs: NDArray[np.bool_], air_hu: float | None) -> float:
    """Return which share of the air in the lungs is as thin as the air around the patient, 0 to 1.

    `hu`, `lungs`: on one grid. `air_hu`: of `air_around`.
    """
    inside = hu[lungs]
    inside = inside[inside < AIR_BELOW_HU]
    around = USUAL_AIR_HU if air_hu is None else air_hu
    return float(np.mean(inside < around + AS_THIN_HU)) if inside.size else 0.0


def require_lung(hu: NDArray[np.float32], lungs: NDArray[np.bool_], air_hu: float | None) -> None:
    """Refuse a mask that is mostly gas in the bowel.

    Raises Refusal E_NOT_LUNG.
    """
    gas = gas_share(hu, lungs, air_hu)
    if gas > MOST_GAS:
        raise Refusal(NOT_LUNG, lung_hu=round(float(np.median(hu[lungs]))), gas=round(100 * gas))
