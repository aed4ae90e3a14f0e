"""The shortcut audit of a study: does the model read the scanner instead of the lung?

The sites measure (`pipeline.evaluation.shortcuts`) and the server judges. Two findings are flagged if chance does not
explain them: acquisition tags that predict a label at a site, and a model that predicts severity with the lungs
blanked out. How well features predict the site or the scanner is reported but not flagged. Hospitals do differ, also
in their patients, and features usually reflect that. It is a fault only if the scanner correlates with the label, and
the flags detect this case.
"""

import math
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit, logit, ndtri

from federation.coordinator import reasons
from federation.protocol.metric_allowlist import MAX_PROBED
from federation.runs.results import Audit, Flag, Probe
from models.familiarity import Moments
from models.refusal import Reason

FALSE_ALARM = 0.01  # the probability that a study without shortcuts gets any flag
LEAST_AUROC = (
    0.55  # the lower end of the interval must exceed this; a smaller AUROC does not explain a model's performance
)
NO_PROBE = "how well features predict the site needs single sites' means, and this study shows the server only sums"
_LEVEL = 0.975  # one-sided level of the intervals that sites report

CHECKS: Mapping[str, Reason] = {
    "auroc_pcr_positive_tags": reasons.SHORTCUT_TAGS,
    "auroc_severe_tags": reasons.SHORTCUT_TAGS,
    "auroc_severe_outside": reasons.SHORTCUT_OUTSIDE,
}
SHOWN = (
    *(f"{name}{end}" for name in CHECKS for end in ("", "_low", "_high")),
    "scanner_from_embedding",
    "scanner_chance",
)


def discriminants(moments: Mapping[str, Moments]) -> NDArray[np.float32]:
    """Diagonal linear discriminants of the sites, in their order, flat: MAX_PROBED x (features + 1), zero padded.

    Each site has a weight for every feature and a constant. All sites have the same prior probability. The variance of
    a feature is the pooled variance within the sites (Dudoit, Fridlyand & Speed, JASA 2002; 97:77). Features without
    variance get the weight zero.

    Raises ValueError with fewer than two sites or more than MAX_PROBED.
    """
    if not 2 <= len(moments) <= MAX_PROBED:
        raise ValueError("this number of sites cannot be probed")
    means = np.array([each.mean for each in moments.values()], dtype=np.float64)
    freedom = np.array([each.patients - 1 for each in moments.values()], dtype=np.float64)
    within = freedom @ np.array([each.variance for each in moments.values()], dtype=np.float64) / freedom.sum()
    precision = np.divide(1, within, out=np.zeros_like(within), where=within > 1e-12)
    middle = means.mean(axis=0)  # the same shift for all sites, to keep the constants small
    table = np.zeros((MAX_PROBED, means.shape[1] + 1), dtype=np.float32)
    table[: len(means), :-1] = (means - middle) * precision
    table[: len(means), -1] = -0.5 * ((means**2 - middle**2) * precision).sum(axis=1)
    return table.ravel()


def probe(shares: Mapping[str, list[float]], probed: list[str]) -> Probe:
    """Measure how well held-out features predict the site.

    `shares`: for each site, the shares of its test patients that are assigned to each of the `probed` sites.
    """
    confusion = {site: dict(zip(probed, assigned, strict=True)) for site, assigned in shares.items()}
    right = [confusion[site][site] for site in confusion]
    return Probe(confusion=confusion, accuracy=float(np.mean(right)), chance=1 / len(probed))


def judge(sites: Mapping[str, Mapping[str, float]], found: Probe | None) -> Audit:
    """Make the audit of a study from the sites' metrics and the probe, if there was one.

    A metric is flagged if the lower end of its interval exceeds LEAST_AUROC. The level of the interval is chosen so
    that a study without shortcuts gets any flag with a probability of at most FALSE_ALARM, for any number of sites and
    metrics (Bonferroni).
    """
    shown = {site: {name: figures[name] for name in SHOWN if name in figures} for site, figures in sites.items()}
    return Audit(probe=found, sites=shown, flags=_flags(shown, "this site"))


def judge_means(means: Mapping[str, float]) -> Audit:
    """Make the audit from the metrics' means over all sites, where no site's own are known.

    The mean of the sites' lower ends is one of the mean: a mean's standard error is at most the mean of the standard
    errors. A shortcut at one site alone is diluted by the others, and may stay below the limit.
    """
    shown = {name: means[name] for name in SHOWN if name in means}
    flags = _flags({"": shown}, "the sites, on average")
    return Audit(probe=None, sites={}, flags=flags, means=shown, no_probe=NO_PROBE)


def _flags(shown: Mapping[str, Mapping[str, float]], where: str) -> list[Flag]:
    """Return the flags of sites, given the metrics that are shown of each."""
    checked = [
        (site, name) for site, figures in shown.items() for name in CHECKS if {name, f"{name}_low"} <= set(figures)
    ]
    flags = []
    for site, name in checked:
        value, low = shown[site][name], shown[site][f"{name}_low"]
        if strict_low(value, low, level=1 - FALSE_ALARM / len(checked)) > LEAST_AUROC:
            reason = CHECKS[name]
            label = name.removeprefix("auroc_").rpartition("_")[0]
            says = reason.says.format(label=label, auroc=f"{value:.2f}", low=f"{low:.2f}", where=where)
            flags.append(Flag(code=reason.code, site=site, says=says))
    return flags


def strict_low(value: float, low: float, *, level: float) -> float:
    """Lower end of an AUROC's one-sided interval of that level, from the lower end of its two-sided 95 % interval.

    It is normal on the logit scale, as the sites' intervals are. At an AUROC of 1 it is the bound of Clopper & Pearson,
    a power of the level (`pipeline.evaluation.discrimination.logit_interval`).
    """
    if value in (0.0, 1.0):
        return float(low ** (math.log(1 - level) / math.log(1 - _LEVEL))) if value else 0.0
    half = float(logit(value) - logit(low)) * ndtri(level) / ndtri(_LEVEL)
    return float(expit(logit(value) - half))
