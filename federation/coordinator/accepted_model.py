"""The last model that the hospitals of a masked study accepted: what the study goes back to, and what it releases.

The replies to a round carry a vote on the model that the round began with. So a round's own step is judged one round
later, and the last step of a study never is: the released model is the one before it. Otherwise a hostile hospital
would only have to wait for the last round.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Self

import numpy as np
from numpy.typing import NDArray

# A gateway helps to unmask the sum of one model's updates once, for ever. So a study goes on with almost the same one.
SHRINK = 0.999
_GROUPS = ("arrays", "buffers", "memory")


@dataclass(frozen=True)
class Accepted:
    """A model, and what is needed to train on from it.

    `memory`: of the strategy's optimiser. `length`: of the mean update before. `shrunk`: how often a model was shrunk
    since. `unjudged`: the rounds whose steps are in the current model and not in this one.
    """

    arrays: Mapping[str, NDArray]
    buffers: Mapping[str, NDArray]
    memory: Mapping[str, NDArray]
    length: float = 0.0
    shrunk: int = 0
    unjudged: tuple[int, ...] = ()

    def tensors(self) -> dict[str, NDArray]:
        """Return all of it as arrays, for a checkpoint; `read` is the inverse."""
        named = {f"{group}/{name}": array for group in _GROUPS for name, array in getattr(self, group).items()}
        return {
            **named,
            "length": np.array([self.length]),
            "shrunk": np.array([self.shrunk]),
            "unjudged": np.array(self.unjudged, np.int64),
        }

    @classmethod
    def read(cls, tensors: Mapping[str, NDArray]) -> Self | None:
        """Return the model in a checkpoint; None if the study has none."""
        if not tensors:
            return None
        groups: dict[str, dict[str, NDArray]] = {group: {} for group in _GROUPS}
        for full_name, array in tensors.items():
            group, _, name = full_name.partition("/")
            if group in groups:
                groups[group][name] = array
        return cls(
            **groups,
            length=float(tensors["length"][0]),
            shrunk=int(tensors["shrunk"][0]),
            unjudged=tuple(tensors["unjudged"].tolist()),
        )

    def shrunk_once_more(self) -> Self:
        return replace(self, shrunk=self.shrunk + 1)


def shrink(arrays: Mapping[str, NDArray], fixed: Sequence[tuple[int, int]], times: int = 1) -> dict[str, NDArray]:
    """Return almost the same weights, which have another digest.

    `fixed`: ranges (start, end) of the packed weights that training does not change; they stay.
    """
    made = {}
    for name, array in arrays.items():
        made[name] = (array * SHRINK**times).astype(array.dtype)
        for start, end in fixed:
            made[name][start:end] = array[start:end]
    return made
