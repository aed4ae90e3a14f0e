"""One calibration and one set of thresholds, made of what each site fitted to its validation patients.

The server computes them. Each site's gateway computes them again in a process of its own, which reads answers from its
standard input and writes settings to its standard output, both in JSON (`calibration_answers.check_settings`):

    python -m federation.protocol.pooled_calibration
"""

import json
import sys
from collections.abc import Mapping, Sequence

from federation.protocol.calibration_answers import Answer
from federation.protocol.metric_allowlist import LABELS
from federation.protocol.pooled_figures import middle_figures, weighted_means
from federation.protocol.reply_validation import EXAMPLES
from models import calibration
from models.calibration import Platt

POINTS = ("rule_out", "rule_in")


def pooled(answers: Sequence[Answer], *, is_robust: bool) -> tuple[dict[str, Platt], dict[str, dict[str, float]]]:
    """By label the calibration, and the thresholds on raw logits, as far as the sites' answers give them.

    `is_robust`: by medians, which no single site can carry away.
    """
    pool = calibration.middle if is_robust else calibration.pool
    fits = {label: [fit for each in answers if (fit := fit_of(each, label))] for label in LABELS}
    means = middle_figures(answers) if is_robust else weighted_means(answers)
    thresholds = {
        label: {point: means[f"{point}_{label}"] for point in POINTS if f"{point}_{label}" in means} for label in LABELS
    }
    return {label: pool(each) for label, each in fits.items() if each}, thresholds


def fit_of(figures: Answer, label: str) -> Platt | None:
    """The calibration of a label that a site has fitted; None where it told none that its patients could have given."""
    names = (f"variance_slope_{label}", f"covariance_{label}", f"variance_intercept_{label}")
    needed = (f"slope_{label}", f"intercept_{label}", *names)
    if not set(needed) <= set(figures):
        return None
    slope, intercept, *covariance = (figures[name] for name in needed)
    fit = Platt.model_validate({"slope": slope, "intercept": intercept, "covariance": covariance})
    return fit if fit.could_be_of(figures[EXAMPLES]) else None


def settings_of(fits: Mapping[str, Platt], thresholds: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """Calibration and thresholds as the settings of a message."""
    settings: dict[str, float] = {}
    for label, platt in fits.items():
        settings |= {f"slope_{label}": platt.slope, f"intercept_{label}": platt.intercept}
    for label, points in thresholds.items():
        settings |= {f"{point}_{label}": at for point, at in points.items()}
    return settings


if __name__ == "__main__":
    sys.stdout.write(json.dumps(settings_of(*pooled(**json.load(sys.stdin)))))
