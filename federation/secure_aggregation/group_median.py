"""The median over the means of groups of hospitals: a group that a hostile hospital spoilt does not move it far.

A group without a sum counts as one that changes nothing. So as long as fewer than half of all groups are spoilt, each
number is between those of other groups and no change, also if further groups lost their round.
"""

import math
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import astuple, dataclass
from functools import cached_property

import numpy as np

from federation.secure_aggregation import reasons
from federation.secure_aggregation.ballots import Votes
from federation.secure_aggregation.fixed_point import Numbers, Words
from federation.secure_aggregation.reply_vector import Mean, Settings, mean_of
from models.refusal import Refusal

PIECE_WEIGHTS = (
    2**20
)  # weights at a time: all groups' changes as 64-bit numbers would take twice the memory of their sums
_ROUNDED = 1.001  # how much longer than the longest update rounding can make a mean


@dataclass(frozen=True)
class GroupSum:
    """The sum of the vectors of a group's hospitals. `names`: of the hospitals in it."""

    total: Words
    settings: Settings
    names: tuple[str, ...]

    def mean(self, start: int, end: int) -> Mean:
        """Return the group's mean, with only the weights from `start` to `end`. Raises Refusal E_SECAGG_RANGE."""
        cut = self.settings.words - self.settings.weights
        words = np.concatenate([self.total[:cut], self.total[cut + start : cut + end]])
        return mean_of(words, self.settings, len(self.names))

    def pieces(self) -> Iterator[slice]:
        """Yield the ranges of weights that are read at a time."""
        for start in range(0, self.settings.weights, PIECE_WEIGHTS):
            yield slice(start, min(start + PIECE_WEIGHTS, self.settings.weights))

    def changes(self, piece: slice) -> Numbers:
        """Return the group's mean changes of these weights. Raises Refusal E_SECAGG_RANGE."""
        return self.mean(piece.start, piece.stop).changes

    @cached_property
    def length(self) -> float | None:
        """The length of the group's mean change; None if unchanged gateways never make such a sum.

        A changed one can make the shares senseless. And the mean of updates that are not too long is not too long.
        """
        try:
            length = math.sqrt(sum(float(row @ row) for row in map(self.changes, self.pieces())))
        except Refusal:
            return None
        return length if length <= _ROUNDED * self.settings.longest else None


@dataclass(frozen=True)
class Moments:
    """The batch-norm moments of the model that the hospitals trained."""

    means: Numbers
    variances: Numbers


def least_groups(groups: int) -> int:
    """Return how many groups a round needs: more than half, or the groups without a sum would decide it."""
    return groups // 2 + 1


def median_of(sums: Sequence[GroupSum], groups: int, before: Moments) -> Mean:
    """Return the median over all `groups` of weights' changes and moments; figures are means weighted by patients.

    `length` is the (low) median of the lengths of the groups' changes: that of the median itself would be shorter, and
    hospitals' updates, which it limits, would be cut more and more. Raises Refusal E_SECAGG_GROUPS if too few sums can
    be used.
    """
    sums = [each for each in sums if each.length is not None]
    if len(sums) < least_groups(groups):
        raise Refusal(reasons.SECAGG_GROUPS, present=len(sums), needed=least_groups(groups))
    heads = [each.mean(0, 0) for each in sums]
    missing = groups - len(sums)
    changes = np.empty(sums[0].settings.weights)
    for piece in sums[0].pieces():
        rows = [each.changes(piece) for each in sums]
        changes[piece] = np.median([*rows, *([np.zeros_like(rows[0])] * missing)], axis=0)
    return Mean(
        patients=sum(head.patients for head in heads),
        figures=_figures(heads),
        means=np.median([*(head.means for head in heads), *([before.means] * missing)], axis=0),
        variances=np.median([*(head.variances for head in heads), *([before.variances] * missing)], axis=0),
        changes=changes,
        length=statistics.median_low(each.length for each in sums if each.length is not None),
        votes=Votes(*(sum(each) for each in zip(*(astuple(head.votes) for head in heads), strict=True))),
    )


def _figures(heads: Sequence[Mean]) -> dict[str, float]:
    """Return the mean of each figure over the groups that have it, weighted by their patients."""
    found = {}
    for name in dict.fromkeys(name for head in heads for name in head.figures):
        known = [head for head in heads if name in head.figures]
        patients = [max(head.patients, 1) for head in known]
        found[name] = float(np.average([head.figures[name] for head in known], weights=patients))
    return found
