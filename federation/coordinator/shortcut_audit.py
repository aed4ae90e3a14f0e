"""The shortcut audit of a study: does the model read the scanner and not the lung?

Sites measure (`pipeline.evaluation.shortcuts`), the server judges. Flagged is what no chance explains: tags that tell
a label at a site, and a model that tells severity where the lungs are blanked out. How well features tell the site or
the scanner is reported and not flagged: hospitals differ honestly, in patients too, and features that ignored it
would be a wonder. It becomes a fault only where the scanner goes with the label, and that is what the flags look for.
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

FALSE_ALARM = 0.01  # the chance that a clean study gets any flag
LEAST_AUROC = 0.55  # what even the low end of the interval must exceed: less explains no model
_LEVEL = 0.975  # of each end of the intervals that sites hand out

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

    For each site a weight for every feature and a constant; all sites are as likely beforehand, and the variance of a
    feature is that within the sites, pooled (Dudoit, Fridlyand & Speed, JASA 2002; 97:77). Features that do not vary
    count for nothing.

    Raises ValueError with fewer than two sites or more than MAX_PROBED.
    """
    if not 2 <= len(moments) <= MAX_PROBED:
        raise ValueError("so many sites cannot be told apart")
    means = np.array([each.mean for each in moments.values()], dtype=np.float64)
    freedom = np.array([each.patients - 1 for each in moments.values()], dtype=np.float64)
    within = freedom @ np.array([each.variance for each in moments.values()], dtype=np.float64) / freedom.sum()
    precision = np.divide(1, within, out=np.zeros_like(within), where=within > 1e-12)
    middle = means.mean(axis=0)  # the same for all sites, so that the constants stay small
    table = np.zeros((MAX_PROBED, means.shape[1] + 1), dtype=np.float32)
    table[: len(means), :-1] = (means - middle) * precision
    table[: len(means), -1] = -0.5 * ((means**2 - middle**2) * precision).sum(axis=1)
    return table.ravel()


def probe(shares: Mapping[str, list[float]], probed: list[str]) -> Probe:
    """How well held-out features tell the site. `shares`: of each site's test patients, by the `probed` sites."""
    confusion = {site: dict(zip(probed, assigned, strict=True)) for site, assigned in shares.items()}
    right = [confusion[site][site] for site in confusion]
    return Probe(confusion=confusion, accuracy=float(np.mean(right)), chance=1 / len(probed))


def judge(sites: Mapping[str, Mapping[str, float]], found: Probe | None) -> Audit:
    """The audit of a study from the sites' figures, by site, and from the probe where there was one.

    A figure is flagged where the low end of its interval still exceeds LEAST_AUROC, at a level so strict that a clean
    study gets any flag with a chance of at most FALSE_ALARM, however many sites and figures it has (Bonferroni).
    """
    shown = {site: {name: figures[name] for name in SHOWN if name in figures} for site, figures in sites.items()}
    checked = [(site, name) for site, figures in shown.items() for name in CHECKS if name in figures]
    flags = []
    for site, name in checked:
        value, low = shown[site][name], shown[site][f"{name}_low"]
        if strict_low(value, low, level=1 - FALSE_ALARM / len(checked)) > LEAST_AUROC:
            reason = CHECKS[name]
            label = name.removeprefix("auroc_").rpartition("_")[0]
            says = reason.says.format(label=label, auroc=f"{value:.2f}", low=f"{low:.2f}")
            flags.append(Flag(code=reason.code, site=site, says=says))
    return Audit(probe=found, sites=shown, flags=flags)


def strict_low(value: float, low: float, *, level: float) -> float:
    """The low end of an AUROC's one-sided interval of that level, from the low end of its two-sided 95 % interval.

    Normal on the logit scale, as the sites' intervals are; at an AUROC of 1 the bound of Clopper & Pearson, which
    depends on the level as a power (`pipeline.evaluation.discrimination.logit_interval`).
    """
    if value in (0.0, 1.0):
        return float(low ** (math.log(1 - level) / math.log(1 - _LEVEL))) if value else 0.0
    half = float(logit(value) - logit(low)) * ndtri(level) / ndtri(_LEVEL)
    return float(expit(logit(value) - half))
