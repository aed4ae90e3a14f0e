"""Choose the thresholds for ruling out and ruling in from the tails that the sites report.

The rule: the highest rung (for ruling in: the lowest) at which the sensitivity (specificity) over all sites' patients
together is estimated as at least AIM, and its one-sided 95 % lower bound is at least FLOOR. The bound is Clopper and
Pearson's (Biometrika 1934; 26:404), with as many missed patients as the steps allow. At most 5 % of studies choose a
rung whose true rate is under FLOOR: the number of missed patients only rises with the rung, so a study that chooses
such a rung also accepts the first one of these, which the bound allows in 5 % of studies. Rates that differ between
sites make it rarer (Hoeffding, Ann Math Stat 1956; 27:713).

A threshold is for all sites, so the patients of one site alone give none: where sites differ, it may not hold at the
others. A robust pool needs the same without any one of the sites, so that no site alone can make a threshold look safe.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import betaincinv

from federation.protocol.metric_allowlist import LABELS, class_counts, tail
from models.operating_points import AIM, CONFIDENCE, FLOOR, LEAST_PATIENTS, POINTS, Evidence, MissingPoint
from pipeline.evaluation.ladder import PERCENTS, RUNGS, UNCOUNTED, most_missed, steps_missed

Answer = Mapping[str, float]
Counts = NDArray[np.int64]
LEAST_SITES = 2
_ROUNDING = 1e-9
_CHOICES = RUNGS[1:-1]  # at the others there is no threshold


@dataclass(frozen=True)
class Chosen:
    """A threshold on raw logits, and the validation patients behind it."""

    logit: float
    evidence: Evidence


@dataclass(frozen=True)
class _Tails:
    """One class at the sites, at each rung of `_CHOICES` from the most cautious one; shapes (rungs, sites).

    `least`, `most`: bounds of the number of missed patients; `steps`: that number in steps; `size`: of the class, shape
    (sites,).
    """

    least: Counts
    most: Counts
    steps: Counts
    size: Counts

    def accepted(self, *, is_robust: bool) -> int:
        """Return how many rungs are accepted; the first ones are."""
        is_good = self._is_good(np.zeros_like(self.size))
        if is_robust:
            for site in range(len(self.size)):
                is_good &= self._is_good(np.eye(len(self.size), dtype=np.int64)[site])
        return int(is_good.sum())

    def _is_good(self, without: Counts) -> NDArray[np.bool_]:
        """Return for each rung whether aim and floor are reached; `without`: 1 for sites that are left out."""
        kept = 1 - without
        size = int(self.size @ kept)
        if not size:
            return np.zeros(len(self.most), bool)
        reaches = self.steps @ kept <= (1 - AIM) * size + _ROUNDING
        return reaches & (lower_bound(size - self.most @ kept, size) >= FLOOR)


def choose(answers: Sequence[Answer], label: str, point: str, *, is_robust: bool) -> Chosen | MissingPoint:
    """Return the threshold of a label, or why there is none; `answers`: of the sites to a calibration."""
    names = (*class_counts(label), *tail(point, label))
    reported = [[each[name] for name in names] for each in answers if set(names) <= set(each)]
    found = [each for each in reported if min(each[:2]) > 0]
    positives, negatives = (sum(int(each[place]) for each in found) for place in (0, 1))
    counted = {"positives": positives, "negatives": negatives, "sites": len(found)}
    if min(positives, negatives) < LEAST_PATIENTS:
        return MissingPoint(why="too_few", **counted)
    side = -1 if point == "rule_in" else 1
    tails = _tails([(int(each[point == "rule_in"]), [side * rung for rung in each[2:]]) for each in found])
    accepted = tails.accepted(is_robust=is_robust) if len(found) >= LEAST_SITES else 0
    if not accepted:
        return MissingPoint(why="not_reached", **counted)
    at = accepted - 1
    size, steps = int(tails.size.sum()), int(tails.steps[at].sum())
    least, most = tails.least[at].sum(), tails.most[at].sum()
    larger = size + UNCOUNTED * len(found)
    evidence = Evidence(
        value=1 - steps / size,
        low=float(lower_bound(size - most, size)),
        high=1 - float(lower_bound(least, larger)),
        **counted,
    )
    return Chosen(side * _CHOICES[at], evidence)


def choose_all(answers: Sequence[Answer], *, is_robust: bool) -> dict[str, dict[str, Chosen | MissingPoint]]:
    """Return the choices of all labels and points."""
    return {label: {point: choose(answers, label, point, is_robust=is_robust) for point in POINTS} for label in LABELS}


def lower_bound(
    successes: Counts | np.int64 | float, size: float, *, tail: float = 1 - CONFIDENCE
) -> NDArray[np.float64]:
    """Return the one-sided lower bound of a share, by Clopper and Pearson; `tail`: the share of bounds above it."""
    bound: NDArray[np.float64] = betaincinv(np.where(successes > 0, successes, 1), size - successes + 1, tail)
    return np.where(successes > 0, bound, 0.0)


def _tails(sites: Sequence[tuple[int, Sequence[float]]]) -> _Tails:
    """Return the missed patients at each rung; `sites`: size of the class and reported rungs, mirrored for ruling in.

    Above a site's last rung all its patients may be missed.
    """
    columns: list[NDArray[np.int64]] = []
    for size, rungs in sites:
        most = [*(most_missed(percent, size) for percent in PERCENTS), size + UNCOUNTED]
        steps = [*(steps_missed(percent, size) for percent in PERCENTS), size]
        least = [0, *(each + 1 for each in most[:-1])]
        # The first reported rung that is at or above each choice.
        places = [next((place for place, rung in enumerate(rungs) if rung >= at), len(rungs)) for at in _CHOICES]
        columns.append(np.array([[min(least[place], size), min(most[place], size), steps[place]] for place in places]))
    table = np.stack(columns, axis=2)
    return _Tails(table[:, 0], table[:, 1], table[:, 2], np.array([size for size, _ in sites]))
