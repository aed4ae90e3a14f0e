"""Centred clipping: a mean that no single site can move far. Flower has no strategy of this kind.

Karimireddy, He and Jaggi, "Learning from History for Byzantine Robust Optimization", ICML 2021: some steps
v <- v + sum of share_i * clip(x_i - v, radius) lead to a round's update. Three things differ from the paper, and
benchmarks/results/robustness.md has figures of the result.

- The radius is no constant, which would have to be guessed for each network and learning rate, but a multiple of the
  low median distance between the sites' updates and v.
- A site's share follows its number of patients up to the low median number: a hospital with half of all patients has
  not half of the votes.
- v begins at zero and not at the last round's update. A round is many local steps here, and in trials that start gained
  nothing with three, five or seven sites; with two, one of them hostile, it kept and added up what that one had done.
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

    With two replies nobody can tell which is the hostile one. Then the longer update counts as no longer than the
    other, so that one which is merely turned around holds the model still.

    `Aggregation` sums the updates by what `shares` gives, part by part: whole models never lie in memory.
    """

    def __init__(self, clip_factor: float = 1.0, iterations: int = 3) -> None:
        super().__init__()
        self.clip_factor = clip_factor
        self.iterations = iterations

    def shares(self, updates: NDArray, weights: Sequence[float]) -> NDArray:
        """What part of each update is in the round's, in their order; the rest, to 1, is no update.

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
        """Raises TypeError: see the class. The mean that is inherited would be no defence."""
        raise TypeError("the updates are summed by their shares")
