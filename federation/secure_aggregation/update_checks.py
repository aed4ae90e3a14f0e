"""What a hospital's own gateway requires of an update, because nobody sees it after it is masked."""

import math
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from federation.secure_aggregation import reasons
from models.refusal import Refusal

# A server can send a model with which most weights do not move at most hospitals. The sum then shows one hospital's.
MAX_UNMOVED = 0.2  # share of the weights that training may change


def clip_factor(
    changes: Iterable[NDArray],
    *,
    longest: float,
    weights: int,
    least: float = 0.0,
    fixed: Sequence[tuple[int, int]] = (),
) -> float:
    """Return the factor that shortens an update to at most `longest`; 1 if it is not longer.

    `changes`: of all `weights`, in pieces. `least`: a change that is not longer counts as none, because little of it is
    left after rounding: a server could choose the rounding so that only the largest hospital's update survives it.
    `fixed`: ranges (start, end) that training does not change. Raises Refusal: E_SECAGG_SPARSE if more than a fifth of
    the other weights did not move, E_SECAGG_RANGE if the length is not finite.
    """
    squares, moved = 0.0, 0
    for piece in changes:
        wide = piece.astype(np.float64)
        with np.errstate(over="ignore"):  # an infinite length is refused below
            squares += float(wide @ wide)
        moved += int(np.count_nonzero(np.abs(wide) > least))
    if not math.isfinite(squares):
        raise Refusal(reasons.SECAGG_RANGE)
    trainable = weights - sum(end - start for start, end in fixed)
    if moved < (1 - MAX_UNMOVED) * trainable:
        raise Refusal(
            reasons.SECAGG_SPARSE, percent=round(100 * (1 - moved / trainable)), allowed=round(100 * MAX_UNMOVED)
        )
    return min(1.0, longest / math.sqrt(squares)) if squares else 1.0
