"""Centred clipping: a mean that no single site can move far. Flower has no strategy of this kind.

Karimireddy, He and Jaggi, "Learning from History for Byzantine Robust Optimization", ICML 2021: some steps
v <- v + sum of share_i * clip(x_i - v, radius) lead to a round's update. This implementation differs from the paper in
three points; benchmarks/results/robustness.md has figures of the result.

- The radius is not a constant, which would have to be guessed for each network and learning rate. It is a multiple of
  the low median distance between the sites' updates and v.
- A site's share is proportional to its number of patients, up to the low median number: a hospital with half of all
  patients does not have half of the votes.
- v begins at zero, not at the last round's update. A round is many local steps here. In trials, beginning at the last
  update gained nothing with three, five or seven sites. With two sites, one of them hostile, it accumulated the hostile
  site's updates.
"""

import statistics
from collections.abc import Iterable, Sequence

import numpy as np
from flwr.app import ArrayRecord, Message, MetricRecord
from flwr.serverapp.strategy import FedAvg
from numpy.typing import NDArray


class CenteredClip(FedAvg):
    """Centred clipping of updates.

    `clip_factor`: the radius in low median distances. `iterations`: steps of a round.

    With two replies it is impossible to tell which one is hostile. The longer update is then clipped to the length of
    the shorter one, so that a reversed update only stops the model from moving.

    `Aggregation` sums the updates with the factors of `shares`, part by part, so that whole models are never in memory.
    """

    def __init__(self, clip_factor: float = 1.0, iterations: int = 3) -> None:
        super().__init__()
        self.clip_factor = clip_factor
        self.iterations = iterations

    def shares(self, updates: NDArray, weights: Sequence[float]) -> NDArray:
        """Return the factor of each update in the round's update, in their order; the rest, up to 1, is no update.

        `updates` has shape (sites, dimensions): points with the same lengths and distances as the models' updates.
        """
        weight = np.minimum(weights, statistics.median_low(weights))
        weight = weight / weight.sum()
        shares = np.zeros(len(updates))
        for _ in range(self.iterations):
            distances = np.linalg.norm(updates - shares @ updates, axis=1)
            radius = self.clip_factor * statistics.median_low(distances.tolist())
            pull = weight * np.divide(radius, distances, out=np.ones_like(weight), where=distances > radius)
            shares = shares * (1.0 - pull.sum()) + pull
        return shares

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Raise TypeError: see the class. The inherited mean would be no defence."""
        raise TypeError("the updates are summed with the factors of `shares`")
