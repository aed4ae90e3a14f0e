"""A hospital's reply to a round as one vector of 32-bit words, and the study's mean from the sum of such vectors.

Every number is multiplied by the hospital's share of the study's patients. The vector holds, in order: the share; for
each figure its value and whether there is one; for each batch-norm channel the mean, and variance + mean² (the law of
total variance makes the pooled variance of these sums); the hospital's ballot, which counts once whatever its share
(see `ballots`); and the changes of the weights.
"""

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Annotated

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, Field

from federation.secure_aggregation import ballots, reasons
from federation.secure_aggregation.ballots import NO_VOTE, Ballot, Votes
from federation.secure_aggregation.canonical import digest
from federation.secure_aggregation.fixed_point import (
    LEAST_SHARE,
    MAX_SITES,
    WIDE_WORDS,
    Numbers,
    Words,
    from_narrow,
    from_wide,
    narrow_scale,
    share_of,
    to_narrow,
    to_wide,
)
from models.refusal import Refusal

# A weight's change counts up to this many times the root mean square of the longest allowed update. Rounding then adds
# at most 1e-7 of that length to the mean over 30 hospitals.
_PEAK = 128.0
_LEAST_UNITS = 4.0
_ROUNDED = 1.001  # how much longer than the longest update rounding can make a mean


class Settings(BaseModel, extra="forbid", frozen=True, strict=True):
    """How the replies of a round are summed; the same at all hospitals, or their masks do not cancel.

    `weights` and `channels`: how many there are in the network. `figures`: names of the summed figures, sorted.
    `patients`: of all hospitals together; a hospital's share is its own number divided by this. `longest`: the
    Euclidean length to which each hospital's gateway clips its update. `sites`: how many hospitals there are.
    """

    weights: int = Field(ge=1)
    channels: int = Field(ge=0)
    figures: Annotated[tuple[str, ...], Field(strict=False)]
    patients: int = Field(ge=1, le=2**32)
    longest: float = Field(gt=0, lt=math.inf)
    sites: int = Field(ge=1, le=MAX_SITES)

    @property
    def digest(self) -> str:
        return digest("settings", self)

    @property
    def limit(self) -> float:
        """The largest change of a single weight that counts."""
        return self.longest * min(1.0, _PEAK / math.sqrt(self.weights))

    def least(self, patients: int) -> float:
        """Return the change of a weight of which at least two bits are left after rounding, at a hospital's share."""
        return _LEAST_UNITS / (narrow_scale(self.limit, self.sites) * self.share(patients))

    @property
    def wide(self) -> int:
        """How many numbers are in the wide format."""
        return 1 + 2 * len(self.figures) + 2 * self.channels

    @property
    def words(self) -> int:
        """The length of the vector."""
        return WIDE_WORDS * self.wide + ballots.WORDS + self.weights

    def share(self, patients: int) -> float:
        """Return a hospital's share of the study's patients. Raises Refusal E_SECAGG_WEIGHT."""
        return share_of(patients, self.patients)


@dataclass(frozen=True)
class Reply:
    """What a hospital adds to the sum. `scale`: the factor that clips its update to the allowed length.

    `changes`: of the weights, in pieces, in order. `means` and `variances`: of the batch-norm channels. `ballot`: what
    the hospital says of the model that it received.
    """

    patients: int
    figures: Mapping[str, float]
    means: NDArray
    variances: NDArray
    changes: Iterable[NDArray]
    scale: float = 1.0
    ballot: Ballot = field(default_factory=lambda: Ballot.drawn(NO_VOTE))


@dataclass(frozen=True)
class Mean:
    """The study's mean over the hospitals in the sum, weighted by patients. `figures`: over those that have them.

    `length`: of the changes; it limits how long a hospital's next update may be. `votes`: one for each hospital.
    """

    patients: int
    figures: Mapping[str, float]
    means: Numbers
    variances: Numbers
    changes: Numbers
    length: float
    votes: Votes


def vector(reply: Reply, settings: Settings) -> Iterator[Words]:
    """Yield the vector of a reply in pieces. Raises Refusal: E_SECAGG_WEIGHT, E_SECAGG_RANGE; ValueError if the reply
    does not have the settings' lengths.
    """
    share = settings.share(reply.patients)
    values = [reply.figures.get(name, 0.0) for name in settings.figures]
    present = [float(name in reply.figures) for name in settings.figures]
    means, variances = (np.asarray(each, np.float64) for each in (reply.means, reply.variances))
    wide = np.concatenate([[1.0], values, present, means, variances + means**2])
    if len(wide) != settings.wide or not set(reply.figures) <= set(settings.figures):
        raise ValueError("the reply does not have the settings' figures and channels")
    yield to_wide(wide, share=share)
    yield reply.ballot.words
    left = settings.weights
    for changes in reply.changes:
        left -= len(changes)
        numbers = changes.astype(np.float64)
        numbers *= reply.scale
        yield to_narrow(numbers, limit=settings.limit, share=share, sites=settings.sites)
    if left:
        raise ValueError("the reply does not have the settings' number of weights")


def mean_of(total: Words, settings: Settings, sites: int) -> Mean:
    """Return the mean from the sum of the vectors of `sites` hospitals.

    Raises Refusal: E_SECAGG_RANGE if it is no such sum, E_SECAGG_VOTES, E_SECAGG_LONG. Unchanged gateways never cause
    these: each adds one ballot, and the mean of updates that are not too long is not too long.
    """
    cut, end = WIDE_WORDS * settings.wide, WIDE_WORDS * settings.wide + ballots.WORDS
    wide = from_wide(total[:cut], sites=sites)
    share, rest = wide[0], wide[1:]
    count = len(settings.figures)
    values, present, moments = rest[:count], rest[count : 2 * count], rest[2 * count :]
    if not 0 < share <= 1 + 1e-6 or not (np.abs(present) <= 1 + 1e-6).all():
        raise Refusal(reasons.SECAGG_RANGE, private="the sum of the shares is not between 0 and 1")
    changes = from_narrow(total[end:], limit=settings.limit, sites=settings.sites) / share
    length = float(np.linalg.norm(changes))
    if length > _ROUNDED * settings.longest:
        raise Refusal(reasons.SECAGG_LONG)
    means, powers = moments[: settings.channels] / share, moments[settings.channels :] / share
    return Mean(
        patients=round(share * settings.patients),
        figures={
            name: float(value / known)
            for name, value, known in zip(settings.figures, values, present, strict=True)
            if known > LEAST_SHARE
        },
        means=means,
        variances=np.maximum(powers - means**2, 0.0),
        changes=changes,
        length=length,
        votes=ballots.count(total[cut:end], sites),
    )
