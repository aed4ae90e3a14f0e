"""How many of a site's test patients have a label and how many do not, from the figures that the site released."""

import math
from collections.abc import Mapping
from typing import NamedTuple

from federation.protocol.metric_allowlist import BINS, EXAMPLES


class ClassSizes(NamedTuple):
    """Test patients with a known label: how many have it, and how many do not."""

    positive: int
    negative: int


def class_sizes(figures: Mapping[str, float], label: str) -> ClassSizes | None:
    """Return the numbers of test patients with and without the label; None if the site released no counts of both.

    They are those that the site states, or else the sums of its histograms.
    """
    stated = [_known(figures, f"{name}_{label}") for name in ("positives", "negatives")]
    bins = [sum(_known(figures, f"count_{label}_{value}_{place:02}") for place in range(BINS)) for value in (1, 0)]
    positive, negative = (round(one or other) for one, other in zip(stated, bins, strict=True))
    return ClassSizes(positive, negative) if positive and negative else None


def about_sizes(figures: Mapping[str, float], label: str) -> ClassSizes:
    """Return the class sizes, without counts those by the prevalence, as if all test patients had a known label.

    Each class has one patient or more. Without a prevalence both classes count as equally large.
    """
    if sizes := class_sizes(figures, label):
        return sizes
    patients = max(2, round(_known(figures, EXAMPLES)))
    prevalence = figures.get(f"prevalence_{label}", math.nan)
    positive = round(patients * (prevalence if math.isfinite(prevalence) else 0.5))
    positive = min(max(positive, 1), patients - 1)
    return ClassSizes(positive, patients - positive)


def _known(figures: Mapping[str, float], name: str) -> float:
    value = figures.get(name, 0.0)
    return value if math.isfinite(value) else 0.0
