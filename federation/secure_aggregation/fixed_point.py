"""Write numbers as 32-bit words whose sums over hospitals, modulo 2^32, are the sums of the numbers.

There are three formats:

- narrow, one word: for weights' changes, between -limit and limit; longer ones are cut off at the limit.
- wide, three words of 20 bits: for the few numbers whose size is not known before, up to 2^25 in steps of 2^-34.
- counts, one word: whole numbers below 2^25, exact.

Each hospital multiplies its narrow and wide numbers by its share of the study's patients before, so that all shares add
up to at most 1 and no sum is longer than the longest number. Counts are not multiplied.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from federation.secure_aggregation import reasons
from models.refusal import Refusal

Numbers = NDArray[np.float64]
Words = NDArray[np.uint32]

MAX_SITES = 1000  # whose limbs are added without a carry into the next one: 1000 * 2^20 < 2^32
WIDE_WORDS = 3
_LIMB_BITS = 20
_LIMB = 2**_LIMB_BITS
_OFFSET = 2 ** (WIDE_WORDS * _LIMB_BITS - 1)  # makes every number positive
WIDE_LIMIT, _WIDE_UNITS = 2.0**25, 2.0**34
COUNT_LIMIT, MAX_COUNTING_SITES = 2**25, 2**7  # whose sum is below 2^32
LEAST_SHARE = 2.0**-35  # half a step of the wide format: a smaller sum of shares is none
_HALF = 2**31


def share_of(patients: int, of: int) -> float:
    """Return a hospital's share of the study's patients. Raises Refusal E_SECAGG_WEIGHT."""
    if not 1 <= patients <= of:
        raise Refusal(reasons.SECAGG_WEIGHT)
    return patients / of


def narrow_scale(limit: float, sites: int) -> float:
    """Return how many units a number of 1 has; rounding at every site leaves room for half a unit each."""
    return (_HALF - 1 - sites) / limit


def to_narrow(numbers: Numbers, *, limit: float, share: float, sites: int) -> Words:
    """Return one word for each number, cut off at the limit and multiplied by the site's share."""
    scaled = np.clip(numbers, -limit, limit)
    scaled *= share * narrow_scale(limit, sites)
    return np.rint(scaled, out=scaled).astype(np.int32).view(np.uint32)


def from_narrow(total: Words, *, limit: float, sites: int) -> Numbers:
    """Return the sums of the numbers, from the sums of their words."""
    return total.view(np.int32).astype(np.float64) / narrow_scale(limit, sites)


def to_wide(numbers: Numbers, *, share: float) -> Words:
    """Return three words for each number, multiplied by the site's share; shape (3 n,).

    Raises Refusal E_SECAGG_RANGE for a number of 2^25 or more.
    """
    if not (np.abs(numbers) < WIDE_LIMIT).all():  # NaN fails too
        raise Refusal(reasons.SECAGG_RANGE)
    units = np.rint(numbers * share * _WIDE_UNITS).astype(np.int64) + _OFFSET
    limbs = [(units >> (_LIMB_BITS * place)) & (_LIMB - 1) for place in range(WIDE_WORDS)]
    return np.concatenate(limbs).astype(np.uint32)


def from_wide(total: Words, *, sites: int) -> Numbers:
    """Return the sums of the numbers, from the sums of their words over exactly `sites` sites; shape (n,)."""
    low, middle, high = total.astype(np.int64).reshape(WIDE_WORDS, -1)
    high = high - sites * (_OFFSET >> (2 * _LIMB_BITS))
    return ((high * _LIMB + middle) * _LIMB + low) / _WIDE_UNITS


def to_counts(numbers: Sequence[int]) -> Words:
    """Return one word for each count; shape (n,). Raises Refusal E_SECAGG_RANGE unless all are from 0 to below 2^25."""
    if not all(0 <= number < COUNT_LIMIT for number in numbers):
        raise Refusal(reasons.SECAGG_RANGE)
    return np.array(numbers, np.uint32)


def from_counts(total: Words) -> list[int]:
    """Return the sums of the counts of at most MAX_COUNTING_SITES sites."""
    return [int(number) for number in total]
