"""The median over the means of groups of hospitals: a group that a hostile hospital spoilt does not move it far.

A group without a sum counts as one that changes nothing. So as long as fewer than half of all groups are spoilt, each
number is between those of other groups and no change, also if further groups lost their round.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from federation.secure_aggregation import reasons
from federation.secure_aggregation.fixed_point import WIDE_WORDS, Numbers, Words
from federation.secure_aggregation.reply_vector import Mean, Settings, mean_of
from models.refusal import Refusal

PIECE_WEIGHTS = (
    2**20
)  # weights at a time: all groups' changes as 64-bit numbers would take twice the memory of their sums


@dataclass(frozen=True)
class GroupSum:
    """The sum of the vectors of a group's hospitals. `names`: of the hospitals in it."""

    total: Words
    settings: Settings
    names: tuple[str, ...]

    def mean(self, start: int, end: int) -> Mean:
        """Return the group's mean, with only the weights from `start` to `end`. Raises Refusal E_SECAGG_RANGE."""
        cut = WIDE_WORDS * self.settings.wide
        words = np.concatenate([self.total[:cut], self.total[cut + start : cut + end]])
        return mean_of(words, self.settings, len(self.names))


@dataclass(frozen=True)
class Moments:
    """The batch-norm moments of the model that the hospitals trained."""

    means: Numbers
    variances: Numbers


def least_groups(groups: int) -> int:
    """Return how many groups a round needs: more than half, or the groups without a sum would decide it."""
    return groups // 2 + 1


def sound(sums: Sequence[GroupSum]) -> list[GroupSum]:
    """Return the sums that are means of anything: a hostile hospital can make its group's shares senseless."""
    found = []
    for each in sums:
        try:
            each.mean(0, 0)
        except Refusal:
            continue
        found.append(each)
    return found


def median_of(sums: Sequence[GroupSum], groups: int, before: Moments) -> Mean:
    """Return the median over all `groups` of weights' changes and moments; figures are means weighted by patients.

    `length` is the (low) median of the lengths of the groups' changes: that of the median itself would be shorter, and
    hospitals' updates, which it limits, would be cut more and more. Raises Refusal: E_SECAGG_GROUPS if too few sums
    are sound.
    """
    sums = sound(sums)
    if len(sums) < least_groups(groups):
        raise Refusal(reasons.SECAGG_GROUPS, present=len(sums), needed=least_groups(groups))
    heads = [each.mean(0, 0) for each in sums]
    missing = groups - len(sums)
    weights = sums[0].settings.weights
    changes, squares = np.empty(weights), np.zeros(len(sums))
    for start in range(0, weights, PIECE_WEIGHTS):
        piece = slice(start, min(start + PIECE_WEIGHTS, weights))
        rows = [each.mean(piece.start, piece.stop).changes for each in sums]
        squares += [float(row @ row) for row in rows]
        changes[piece] = np.median([*rows, *([np.zeros_like(rows[0])] * missing)], axis=0)
    return Mean(
        patients=sum(head.patients for head in heads),
        figures=_figures(heads),
        means=np.median([*(head.means for head in heads), *([before.means] * missing)], axis=0),
        variances=np.median([*(head.variances for head in heads), *([before.variances] * missing)], axis=0),
        changes=changes,
        length=float(np.sqrt(sorted(squares)[(len(squares) - 1) // 2])),
    )


def _figures(heads: Sequence[Mean]) -> dict[str, float]:
    """Return the mean of each figure over the groups that have it, weighted by their patients."""
    found = {}
    for name in dict.fromkeys(name for head in heads for name in head.figures):
        known = [head for head in heads if name in head.figures]
        patients = [max(head.patients, 1) for head in known]
        found[name] = float(np.average([head.figures[name] for head in known], weights=patients))
    return found
