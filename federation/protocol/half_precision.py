"""How weights travel between the server and the sites: as they are, or in half precision ([wire] in study.toml).

In half precision the weights go down as float16, and up comes what a site's training changed in them, as float16 too.
The server adds that to the weights that it holds in float32. So no number that is kept from round to round is ever
rounded: what is lost is at most 2^-11 of a change, once, and of a change below 6e-8 all; of the weights themselves it
would be 2^-11 of numbers that a round moves by some per cent. Batch-norm buffers, one number in a thousand, stay as
they are, for variances may be large and counters must be exact.

All who ask sites for anything do it through a `Wire`, and see float32 on their side of it. Light where it is imported:
the gateway has no torch.
"""

from collections.abc import Mapping
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from federation.protocol import reasons
from models.refusal import Refusal

Arrays = Mapping[str, NDArray]
Precision = Literal["float32", "float16"]
HALF: Precision = "float16"
UPDATE = "update."  # before the name of an array that holds what changed


def rounded(arrays: Arrays, precision: Precision) -> dict[str, NDArray]:
    """Weights as they go down.

    Raises Refusal E_MODEL_NOT_FINITE where one is too large for half precision, which ends at 65,504.
    """
    with np.errstate(over="ignore"):
        sent = {name: array.astype(precision, copy=False) for name, array in arrays.items()}
    if not all(np.isfinite(array).all() for array in sent.values()):
        raise Refusal(reasons.MODEL_NOT_FINITE)
    return sent


def changes(new: Arrays, sent: Arrays) -> dict[str, NDArray]:
    """What goes up: of weights in float32, how they differ from the rounded ones that came, rounded as well.

    A change that is too large becomes infinite, and is refused. Torch rounds, to the same bits: numpy takes fifty times
    as long over numbers under 6e-5, which most changes are.
    """
    import torch

    moved = {name: np.asarray(new[name] - sent[name].astype(np.float32)) for name in sent}
    return {UPDATE + name: torch.from_numpy(each).half().numpy() for name, each in moved.items()}
