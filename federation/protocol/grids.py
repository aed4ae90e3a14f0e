"""The values that a figure may take, so that its digits carry no more than a figure needs.

A grid is a finite set of numbers. The site's app rounds each figure to it, and the gateway does so once more when it
composes a reply. Exact decimals throughout: rounding a rounded number changes nothing. Light: the gateway has no torch.
"""

import math
from dataclasses import dataclass
from decimal import ROUND_CEILING, ROUND_DOWN, ROUND_FLOOR, ROUND_HALF_EVEN, ROUND_UP, Decimal
from typing import Literal

Toward = Literal["nearest", "down", "up", "zero", "infinity"]  # "zero" and "infinity": of the number's magnitude
MAX_PARTS = 100  # a share is told in hundredths at best
_PATIENTS_A_STEP = 3
_ROUNDING = {
    "nearest": ROUND_HALF_EVEN,
    "down": ROUND_FLOOR,
    "up": ROUND_CEILING,
    "zero": ROUND_DOWN,
    "infinity": ROUND_UP,
}


def parts_of(patients: int) -> int:
    """L, where a share of so many patients is told in steps of 1/L: a step is worth three patients or more."""
    return max(1, min(MAX_PARTS, patients // _PATIENTS_A_STEP))


@dataclass(frozen=True)
class Step:
    """Multiples of `size`, which divides 1."""

    size: float

    def rounded(self, value: float, toward: Toward = "nearest") -> float:
        """The grid's number next to `value` in that direction."""
        return _to_parts(value, round(1 / self.size), toward)

    def points(self, low: float, high: float) -> int:
        """How many numbers of the grid lie from `low` to `high`."""
        return _points(low, high, round(1 / self.size))


@dataclass(frozen=True)
class Shares:
    """Multiples of 1/L, with L of `parts_of` the patients: all with the label, or those whose label is true or false.

    Without a label: all patients of the split.
    """

    of: Literal["all", "true", "false"] = "all"

    def rounded(self, value: float, patients: int, toward: Toward = "nearest") -> float:
        """The grid's number next to `value` where it is over so many patients."""
        return _to_parts(value, parts_of(patients), toward)

    def points(self, low: float, high: float) -> int:
        """How many numbers lie from `low` to `high` at most, whatever the number of patients."""
        return _points(low, high, MAX_PARTS)


@dataclass(frozen=True)
class Digits:
    """Numbers of so many significant digits; below `least` the steps are those at `least`, which is a power of ten.

    `toward`: the direction of rounding.
    """

    digits: int
    least: float
    toward: Toward = "nearest"

    def rounded(self, value: float) -> float:
        """The grid's number next to `value`."""
        exact = Decimal(repr(float(value)))
        exponent = max(exact.adjusted() if exact else self._exponent, self._exponent) - self.digits + 1
        return float(exact.quantize(Decimal(1).scaleb(exponent), rounding=_ROUNDING[self.toward]))

    @property
    def _exponent(self) -> int:
        return Decimal(repr(float(self.least))).adjusted()

    def points(self, low: float, high: float) -> int:
        """How many numbers of the grid lie from `low` to `high`."""
        if low >= 0:
            return self._up_to(high) - self._up_to(low) + 1
        return self._up_to(high) + self._up_to(-low) - 1

    def _up_to(self, high: float) -> int:
        """How many numbers lie from 0 to `high`."""
        top, exponent, count = Decimal(repr(float(high))), self._exponent, 1
        start = Decimal(0)
        while start < top:
            end, step = Decimal(1).scaleb(exponent + 1), Decimal(1).scaleb(exponent - self.digits + 1)
            count += int((min(end, top) - start) / step)
            start, exponent = end, exponent + 1
        return count


Grid = Step | Shares | Digits


def _to_parts(value: float, parts: int, toward: Toward) -> float:
    """The multiple of 1/`parts` next to `value`. What is one but for the last bits of a float is taken for one."""
    scaled = value * parts
    nearest = round(scaled)
    if toward == "nearest" or math.isclose(scaled, nearest, rel_tol=1e-9, abs_tol=1e-9):
        return nearest / parts
    return (math.floor(scaled) if toward == "down" else math.ceil(scaled)) / parts


def _points(low: float, high: float, parts: int) -> int:
    return math.floor(high * parts + 1e-9) - math.ceil(low * parts - 1e-9) + 1
