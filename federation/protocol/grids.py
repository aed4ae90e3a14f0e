"""Grids: the finite sets of values that figures may take, so that their digits carry no more than necessary.

The site's app rounds each figure to its grid, and the gateway does so again when it composes a reply. Rounding uses
exact decimals, so rounding twice changes nothing. Works without torch, for the gateway.
"""

import math
from dataclasses import dataclass
from decimal import ROUND_CEILING, ROUND_DOWN, ROUND_FLOOR, ROUND_HALF_EVEN, ROUND_UP, Decimal
from typing import Literal

from pipeline.evaluation.ladder import PATIENTS_A_STEP, RUNGS, counted

Toward = Literal["nearest", "down", "up", "zero", "infinity"]  # "zero" and "infinity" refer to the number's magnitude
MAX_PARTS = 100  # the finest steps of a share are hundredths
_ROUNDING = {
    "nearest": ROUND_HALF_EVEN,
    "down": ROUND_FLOOR,
    "up": ROUND_CEILING,
    "zero": ROUND_DOWN,
    "infinity": ROUND_UP,
}


def parts_of(patients: int) -> int:
    """Return L, where shares over `patients` patients have steps of 1/L: a step covers three patients or more."""
    return max(1, min(MAX_PARTS, patients // PATIENTS_A_STEP))


@dataclass(frozen=True)
class Step:
    """Multiples of `size`; 1 is a multiple of `size`."""

    size: float

    def rounded(self, value: float, toward: Toward = "nearest") -> float:
        """Return the grid's number nearest to `value` in the given direction."""
        return _to_parts(value, round(1 / self.size), toward)

    def points(self, low: float, high: float) -> int:
        """Return how many numbers of the grid lie from `low` to `high`."""
        return _points(low, high, round(1 / self.size))


@dataclass(frozen=True)
class Shares:
    """Multiples of 1/L, with L = `parts_of` the patients: all with the label, or those whose label is true or false.

    Without a label: all patients of the split.
    """

    of: Literal["all", "true", "false"] = "all"

    def rounded(self, value: float, patients: int, toward: Toward = "nearest") -> float:
        """Return the grid's number nearest to `value`, which covers `patients` patients."""
        return _to_parts(value, parts_of(patients), toward)

    def points(self, low: float, high: float) -> int:
        """Return the largest possible number of values from `low` to `high`, for any number of patients."""
        return _points(low, high, MAX_PARTS)


@dataclass(frozen=True)
class Digits:
    """Numbers of `digits` significant digits; below `least`, a power of ten, the steps are as fine as at `least`.

    `toward`: the direction of rounding.
    """

    digits: int
    least: float
    toward: Toward = "nearest"

    def rounded(self, value: float) -> float:
        """Return the grid's number nearest to `value`."""
        exact = Decimal(repr(float(value)))
        exponent = max(exact.adjusted() if exact else self._exponent, self._exponent) - self.digits + 1
        return float(exact.quantize(Decimal(1).scaleb(exponent), rounding=_ROUNDING[self.toward]))

    @property
    def _exponent(self) -> int:
        return Decimal(repr(float(self.least))).adjusted()

    def points(self, low: float, high: float) -> int:
        """Return how many numbers of the grid lie from `low` to `high`."""
        if low >= 0:
            return self._up_to(high) - self._up_to(low) + 1
        return self._up_to(high) + self._up_to(-low) - 1

    def _up_to(self, high: float) -> int:
        """Return how many numbers of the grid lie from 0 to `high`."""
        top, exponent, count = Decimal(repr(float(high))), self._exponent, 1
        start = Decimal(0)
        while start < top:
            end, step = Decimal(1).scaleb(exponent + 1), Decimal(1).scaleb(exponent - self.digits + 1)
            count += int((min(end, top) - start) / step)
            start, exponent = end, exponent + 1
        return count


@dataclass(frozen=True)
class Threes:
    """Numbers of patients whose label is true or false, as `pipeline.evaluation.ladder.counted_classes` gives them.

    The gateway computes them itself: the app cannot choose them.
    """

    of: Literal["true", "false"]

    def rounded(self, value: float) -> float:
        """Return the multiple of three at or below `value`."""
        return float(counted(int(value)))


@dataclass(frozen=True)
class Ladder:
    """The rungs of `pipeline.evaluation.ladder`, on the scale of raw logits."""

    def rounded(self, value: float) -> float:
        """Return the nearest rung."""
        return min(RUNGS, key=lambda rung: abs(rung - value))

    def points(self, low: float, high: float) -> int:
        """Return how many rungs lie from `low` to `high`."""
        return sum(low <= rung <= high for rung in RUNGS)


Grid = Step | Shares | Digits | Threes | Ladder


def _to_parts(value: float, parts: int, toward: Toward) -> float:
    """Return the multiple of 1/`parts` nearest to `value`; a value within float error of a multiple counts as it."""
    scaled = value * parts
    nearest = round(scaled)
    if toward == "nearest" or math.isclose(scaled, nearest, rel_tol=1e-9, abs_tol=1e-9):
        return nearest / parts
    return (math.floor(scaled) if toward == "down" else math.ceil(scaled)) / parts


def _points(low: float, high: float, parts: int) -> int:
    return math.floor(high * parts + 1e-9) - math.ceil(low * parts - 1e-9) + 1
