"""The rungs at which a site describes the ends of its score distributions, from which thresholds are chosen.

A rung is a fixed raw logit. A site reports, for the class whose patients must not be missed, the last rung at which
few of them are missed. It never reports a patient's own score. Imports nothing heavy: the gateway and the server use
it too.
"""

import math

PATIENTS_A_STEP = 3  # counts of patients leave a site in steps of this size
PERCENTS = (0, 10, 20)  # shares of missed patients for which a site reports a rung
BEYOND = 100.0  # at -BEYOND and BEYOND a rung means "none of the others": no threshold is chosen there
UNCOUNTED = 2 * (PATIENTS_A_STEP - 1)  # at most this many patients of a class are not counted
_RUNGS_A_SIDE, _CLOSEST = 24, 0.125

# Steps of 0.125 near 0, where most logits lie, and wider ones outwards up to 10.
RUNGS = (
    -BEYOND,
    *(round(math.sinh(_CLOSEST * place), 2) for place in range(-_RUNGS_A_SIDE, _RUNGS_A_SIDE + 1)),
    BEYOND,
)


def counted(patients: int) -> int:
    """Return a number of patients rounded down to a whole number of steps."""
    return patients // PATIENTS_A_STEP * PATIENTS_A_STEP


def counted_classes(positives: int, negatives: int) -> tuple[int, int]:
    """Return the sizes of both classes in steps, each at or below the true size.

    The negatives are counted as if the positives were as many as their step allows. Otherwise the two sizes and the
    number of all patients, which leaves exactly, would often give the exact sizes.
    """
    rough = counted(positives)
    return rough, counted(max(0, positives + negatives - rough - (PATIENTS_A_STEP - 1)))


def steps_missed(percent: int, size: int) -> int:
    """Return the largest multiple of a step that is at most this share of a class of the counted `size`."""
    return counted(size * percent // 100)


def most_missed(percent: int, size: int) -> int:
    """Return how many patients may be missed at a rung that is reported for this share of a class.

    Those whose number rounds to at most `steps_missed`: one more than it. So nobody learns from a rung whether a class
    has one outlier: at the first rung none or one is missed, at the next ones up to four, up to seven, and so on.
    """
    return steps_missed(percent, size) + 1
