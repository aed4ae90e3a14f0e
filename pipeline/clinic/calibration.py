"""Calibration of the live model at this hospital: its probabilities against what became of the patients.

One scan of each patient counts, the first with a known outcome, so that the intervals hold. All intervals are 95 %
intervals of a proportion (Wilson, JASA 1927; 22:209).
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import sqrt
from statistics import fmean
from typing import Any

BINS = 5
_Z = 1.959964  # of 95 %


@dataclass(frozen=True)
class Scored:
    """One answer with a known outcome. `reader`: the level after the newest decision; "" if nobody decided."""

    patient: str
    probability: float
    has_event: bool
    model: str = ""
    reader: str = ""


@dataclass(frozen=True)
class Observed:
    """Patients with and without an event. `expected`: mean probability; None in a group of levels."""

    patients: int
    events: int
    expected: float | None = None

    @property
    def share(self) -> float:
        return self.events / self.patients

    def to_json(self) -> dict[str, Any]:
        low, high = wilson(self.events, self.patients)
        observed = {"patients": self.patients, "events": self.events, "observed": round(self.share, 4)}
        expected = {} if self.expected is None else {"expected": round(self.expected, 4)}
        return {**observed, **expected, "low": round(low, 4), "high": round(high, 4)}


@dataclass(frozen=True)
class LocalCalibration:
    """The calibration of one label. `bins`: of equal width, with their lower end; empty ones are left out.

    `by_model`, `by_reader`: by level.
    """

    whole: Observed
    bins: dict[float, Observed]
    by_model: dict[str, Observed]
    by_reader: dict[str, Observed]

    def to_json(self) -> dict[str, Any]:
        return {
            **self.whole.to_json(),
            "bins": [{"from": low, "to": low + 1 / BINS, **each.to_json()} for low, each in self.bins.items()],
            "levels": {
                who: {level: each.to_json() for level, each in found.items()}
                for who, found in (("model", self.by_model), ("reader", self.by_reader))
            },
        }


def local_calibration(answers: Iterable[Scored]) -> LocalCalibration | None:
    """Compare probabilities with outcomes. `answers`: oldest first. None without any."""
    known = first_of_each_patient(answers)
    if not known:
        return None
    bins: dict[float, list[Scored]] = {}
    for each in known:
        bins.setdefault(min(int(each.probability * BINS), BINS - 1) / BINS, []).append(each)
    return LocalCalibration(
        whole=_observed(known),
        bins={low: _observed(bins[low]) for low in sorted(bins)},
        by_model=_by_level((each.model, each) for each in known),
        by_reader=_by_level((each.reader, each) for each in known),
    )


def first_of_each_patient(answers: Iterable[Scored]) -> list[Scored]:
    first: dict[str, Scored] = {}
    for each in answers:
        first.setdefault(each.patient, each)
    return list(first.values())


def wilson(events: int, patients: int) -> tuple[float, float]:
    """Return the 95 % interval of a proportion; (0, 1) without patients."""
    if not patients:
        return 0.0, 1.0
    share, squared = events / patients, _Z**2 / patients
    centre = (share + squared / 2) / (1 + squared)
    half = _Z * sqrt(share * (1 - share) / patients + squared / (4 * patients)) / (1 + squared)
    return max(0.0, centre - half), min(1.0, centre + half)


def _observed(known: Sequence[Scored]) -> Observed:
    return Observed(len(known), sum(each.has_event for each in known), fmean(each.probability for each in known))


def _by_level(found: Iterable[tuple[str, Scored]]) -> dict[str, Observed]:
    counts: dict[str, list[bool]] = {}
    for level, each in found:
        if level:
            counts.setdefault(level, []).append(each.has_event)
    return {level: Observed(len(events), sum(events)) for level, events in sorted(counts.items())}
