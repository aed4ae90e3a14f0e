"""Encode weights for messages in full or in half precision ([wire] in study.toml).

In half precision the server sends the weights as float16, and a site returns the changes that its training made, also
as float16. The server adds the changes to the weights, which it keeps in float32. So no number that is kept between
rounds is ever rounded. The loss is at most 2^-11 of a change, once, and the whole of a change below 6e-8. Rounding the
weights themselves would lose 2^-11 of numbers that a round changes by some per cent. Batch-norm buffers, one number in
a thousand, keep full precision: variances may be large, and counters must be exact.

All code that sends tasks to sites uses a `Wire` and works with float32 itself. This module imports torch only inside
`changes`, because the gateway has no torch.
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
UPDATE = "update."  # prefix of the name of an array that holds changes


def rounded(arrays: Arrays, precision: Precision) -> dict[str, NDArray]:
    """Return the weights as the server sends them.

    Raises Refusal E_MODEL_NOT_FINITE if one is too large for half precision, whose maximum is 65,504.
    """
    with np.errstate(over="ignore"):
        sent = {name: array.astype(precision, copy=False) for name, array in arrays.items()}
    if not all(np.isfinite(array).all() for array in sent.values()):
        raise Refusal(reasons.MODEL_NOT_FINITE)
    return sent


def changes(new: Arrays, sent: Arrays) -> dict[str, NDArray]:
    """Return a site's reply: the differences between its float32 weights and the received weights, as float16.

    A change that is too large becomes infinite, and is refused. Torch rounds the numbers, with the same bits as
    numpy: numpy takes fifty times as long for numbers under 6e-5, which most changes are.
    """
    import torch

    moved = {name: np.asarray(new[name] - sent[name].astype(np.float32)) for name in sent}
    return {UPDATE + name: torch.from_numpy(each).half().numpy() for name, each in moved.items()}
