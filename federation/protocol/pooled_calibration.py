"""Pool the sites' calibrations and thresholds into one set.

The server computes it. Each site's gateway computes it again in a separate process, which reads answers from its
standard input and writes settings to its standard output, both as JSON (`calibration_answers.check_settings`):

    python -m federation.protocol.pooled_calibration
"""

import json
import sys
from collections.abc import Mapping, Sequence

from federation.protocol.calibration_answers import Answer
from federation.protocol.metric_allowlist import EXAMPLES, LABELS
from federation.protocol.operating_points import Chosen, choose_all
from models import calibration
from models.calibration import Platt


def pooled(answers: Sequence[Answer], *, is_robust: bool) -> tuple[dict[str, Platt], dict[str, dict[str, float]]]:
    """Return the calibration by label, and the thresholds on raw logits, as far as the sites' answers allow.

    `is_robust`: pool calibrations by medians, and require of a threshold that it is safe without any one site; no
    single site can distort either.
    """
    pool = calibration.middle if is_robust else calibration.pool
    fits = {label: [fit for each in answers if (fit := fit_of(each, label))] for label in LABELS}
    thresholds = {
        label: {point: choice.logit for point, choice in choices.items() if isinstance(choice, Chosen)}
        for label, choices in choose_all(answers, is_robust=is_robust).items()
    }
    return {label: pool(each) for label, each in fits.items() if each}, thresholds


def fit_of(figures: Answer, label: str) -> Platt | None:
    """Return a site's calibration of a label; None if it is missing or impossible for that number of patients."""
    names = (f"variance_slope_{label}", f"covariance_{label}", f"variance_intercept_{label}")
    needed = (f"slope_{label}", f"intercept_{label}", *names)
    if not set(needed) <= set(figures):
        return None
    slope, intercept, *covariance = (figures[name] for name in needed)
    fit = Platt.model_validate({"slope": slope, "intercept": intercept, "covariance": covariance})
    return fit if fit.could_be_of(figures[EXAMPLES]) else None


def settings_of(fits: Mapping[str, Platt], thresholds: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """Return calibration and thresholds as settings of a message."""
    settings: dict[str, float] = {}
    for label, platt in fits.items():
        settings |= {f"slope_{label}": platt.slope, f"intercept_{label}": platt.intercept}
    for label, points in thresholds.items():
        settings |= {f"{point}_{label}": at for point, at in points.items()}
    return settings


if __name__ == "__main__":
    sys.stdout.write(json.dumps(settings_of(*pooled(**json.load(sys.stdin)))))
