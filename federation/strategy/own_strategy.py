"""A strategy of a package, on the server alone: from the sites' updates to the round's update.

It has no more room than the release's own robust strategies. Replies were checked and clipped before. Batch-norm
statistics and calibrations are combined by medians. The result has the model's shape, and is no longer than the longest
update: the hospitals' gateways refuse a model that moved further (E_MODEL_DRIFT).
"""

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from flwr.app import ArrayRecord, Message, MetricRecord
from flwr.serverapp.strategy import FedAvg
from numpy.typing import NDArray

from models.own_code import OwnPart
from models.own_packages import Named

_TRIAL = ((0.5, -1.0, 0.25, 2.0), (0.25, -0.5, 0.5, 1.0), (0.0, -2.0, 0.0, 1.5))
_TRIAL_PATIENTS = (10, 40, 20)


class OwnStrategy(FedAvg):
    """A package's function: from updates (sites, numbers), float32, and patients (sites,) to an update (numbers,).

    It keeps nothing between rounds. `options`: those of the study, passed by name. Its code is imported when it is
    first needed, so that a gateway, which runs no code of packages, can read the study.
    """

    def __init__(self, part: Named, options: Mapping[str, float]) -> None:
        super().__init__()
        self.part, self.options = part, dict(options)

    def combined(self, updates: NDArray, patients: Sequence[float]) -> NDArray:
        """Return the round's update, float64, as long as the longest of `updates` at most.

        `updates` may be overwritten. A result may be not finite: the caller checks the new model. Raises Refusal:
        E_NETWORK_CLOSED, E_NETWORK_PACKAGE, E_PACKAGE_PART.
        """
        numbers = updates.shape[1]
        longest = max(float(np.linalg.norm(update.astype(np.float64))) for update in updates)
        own = OwnPart.open(self.part, self.options)
        made = own.call(updates, np.asarray(patients, dtype=np.float64))
        if not isinstance(made, np.ndarray) or made.shape != (numbers,) or made.dtype.kind != "f":
            raise own.bad("it returns no array of floats with one number for each of the model's, shape (numbers,)")
        update = made.astype(np.float64)
        length = float(np.linalg.norm(update))
        return update * (longest / length) if length > longest else update

    def rehearse(self) -> None:
        """Combine invented updates. Raises Refusal as `combined` does, and E_PACKAGE_PART for a value not finite."""
        made = self.combined(np.array(_TRIAL, dtype=np.float32), _TRIAL_PATIENTS)
        if not np.isfinite(made).all():
            raise OwnPart.open(self.part, self.options).bad("a number of the update is not finite")

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Raise TypeError: `Aggregation` calls `combined`. The inherited mean is not this strategy."""
        raise TypeError("the updates are combined by `combined`")
