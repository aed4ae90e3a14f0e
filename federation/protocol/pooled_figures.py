"""Pool the figures of several sites."""

from collections.abc import Mapping, Sequence

from federation.protocol.metric_allowlist import EXAMPLES


def weighted_means(reports: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Return the mean of each figure over the sites that reported it, weighted by their examples.

    A mean of AUROCs is not the AUROC of all patients together.
    """
    names = sorted({name for figure in reports for name in figure} - {EXAMPLES})
    means = {}
    for name in names:
        having = [figure for figure in reports if name in figure]
        total = sum(figure[EXAMPLES] for figure in having)
        means[name] = sum(figure[name] * figure[EXAMPLES] for figure in having) / total
    return means
