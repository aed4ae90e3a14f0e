"""A hospital's answer to a question about a model as one vector of 32-bit words, and the sums over the hospitals.

The vector holds, in order: counts of patients, exact; the hospital's share of the study's patients; for each figure its
value and whether there is one; and for each number of the array records the mean, and variance + mean² (the law of
total variance makes the pooled variance of these sums). All but the counts are multiplied by the share.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, Field

from federation.secure_aggregation import reasons
from federation.secure_aggregation.canonical import digest
from federation.secure_aggregation.fixed_point import (
    LEAST_SHARE,
    MAX_COUNTING_SITES,
    WIDE_WORDS,
    Numbers,
    Words,
    from_counts,
    from_wide,
    share_of,
    to_counts,
    to_wide,
)
from models.refusal import Refusal

_Names = Annotated[tuple[str, ...], Field(strict=False)]


class AnswerSettings(BaseModel, extra="forbid", frozen=True, strict=True):
    """How the answers to a question are summed; the same at all hospitals, or their masks do not cancel.

    `kind`: of the question. `counts` and `means`: names of the summed counts and of the averaged figures, in order.
    `moments`: how many numbers each array record has, by its name. `patients`: at least as many as all hospitals have
    together; a hospital's share is its own number divided by this. `sites`: how many hospitals there are.
    """

    kind: str
    counts: _Names
    means: _Names
    moments: dict[str, int]
    patients: int = Field(ge=1, le=2**32)
    sites: int = Field(ge=1, le=MAX_COUNTING_SITES)

    @property
    def digest(self) -> str:
        return digest("answer settings", self)

    @property
    def wide(self) -> int:
        """How many numbers are in the wide format."""
        return 1 + 2 * len(self.means) + 2 * sum(self.moments.values())

    @property
    def words(self) -> int:
        """The length of the vector."""
        return len(self.counts) + WIDE_WORDS * self.wide


@dataclass(frozen=True)
class Answer:
    """What a hospital adds to the sum. A missing count is 0, a missing mean is not part of the average.

    `moments`: mean and variance of each number of an array record.
    """

    patients: int
    counts: Mapping[str, int] = field(default_factory=dict)
    means: Mapping[str, float] = field(default_factory=dict)
    moments: Mapping[str, tuple[NDArray, NDArray]] = field(default_factory=dict)


@dataclass(frozen=True)
class AnswerSum:
    """The sums over the hospitals. `means`: over those that have the figure, weighted by patients.

    `known`: the share of all patients whose hospitals have the figure. `moments`: mean and variance over the patients
    of all hospitals.
    """

    sites: int
    patients: int
    counts: Mapping[str, int]
    means: Mapping[str, float]
    known: Mapping[str, float]
    moments: Mapping[str, tuple[Numbers, Numbers]]


def answer_vector(answer: Answer, settings: AnswerSettings) -> Words:
    """Return the vector of an answer. Raises Refusal: E_SECAGG_WEIGHT, E_SECAGG_RANGE; ValueError if the answer has
    other names or lengths than the settings.
    """
    known = set(answer.counts) <= set(settings.counts) and set(answer.means) <= set(settings.means)
    lengths = {name: (len(mean), len(variance)) for name, (mean, variance) in answer.moments.items()}
    if not known or lengths != {name: (length, length) for name, length in settings.moments.items()}:
        raise ValueError("the answer does not have the settings' counts, figures and records")
    share = share_of(answer.patients, settings.patients)
    moments: list[Numbers] = []
    for name in sorted(settings.moments):
        mean, variance = (np.asarray(each, np.float64) for each in answer.moments[name])
        with np.errstate(over="ignore", invalid="ignore"):  # `to_wide` refuses what is not finite
            moments += [mean, variance + mean**2]
    values = [answer.means.get(name, 0.0) for name in settings.means]
    present = [float(name in answer.means) for name in settings.means]
    counts = to_counts([answer.counts.get(name, 0) for name in settings.counts])
    return np.concatenate([counts, to_wide(np.concatenate([[1.0], values, present, *moments]), share=share)])


def sum_of(total: Words, settings: AnswerSettings, sites: int) -> AnswerSum:
    """Return the sums from the sum of the vectors of `sites` hospitals. Raises Refusal E_SECAGG_RANGE if it is none."""
    cut, number = len(settings.counts), len(settings.means)
    counts, wide = from_counts(total[:cut]), from_wide(total[cut:], sites=sites)
    share, values, present, rest = (
        wide[0],
        wide[1 : 1 + number],
        wide[1 + number : 1 + 2 * number],
        wide[1 + 2 * number :],
    )
    plausible = 0 < share <= 1 + 1e-6 and (present <= share + 1e-6).all() and (present >= -1e-6).all()
    if not plausible or any(count > settings.patients for count in counts):
        raise Refusal(reasons.SECAGG_RANGE, private="the sum of the answers is not that of shares and patients")
    moments: dict[str, tuple[Numbers, Numbers]] = {}
    for name in sorted(settings.moments):
        length = settings.moments[name]
        mean, power = rest[:length] / share, rest[length : 2 * length] / share
        moments[name], rest = (mean, np.maximum(power - mean**2, 0.0)), rest[2 * length :]
    told = {
        name: (float(value / each), min(1.0, float(each / share)))
        for name, value, each in zip(settings.means, values, present, strict=True)
        if each > LEAST_SHARE
    }
    return AnswerSum(
        sites=sites,
        patients=round(share * settings.patients),
        counts=dict(zip(settings.counts, counts, strict=True)),
        means={name: mean for name, (mean, _) in told.items()},
        known={name: known for name, (_, known) in told.items()},
        moments=moments,
    )
