"""How the figures of several sites become one."""

from collections.abc import Mapping, Sequence

import numpy as np

from federation.protocol.reply_validation import EXAMPLES


def weighted_means(reports: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """The mean of each figure over the sites that gave it, weighted by their examples.

    A mean of AUROCs is that and no more: it is not the AUROC of all patients together.
    """
    names = sorted({name for figure in reports for name in figure} - {EXAMPLES})
    means = {}
    for name in names:
        having = [figure for figure in reports if name in figure]
        total = sum(figure[EXAMPLES] for figure in having)
        means[name] = sum(figure[name] * figure[EXAMPLES] for figure in having) / total
    return means


def middle_figures(reports: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """The median of each figure over the sites that gave it: no single site can carry it away."""
    names = sorted({name for figure in reports for name in figure} - {EXAMPLES})
    return {name: float(np.median([figure[name] for figure in reports if name in figure])) for name in names}
