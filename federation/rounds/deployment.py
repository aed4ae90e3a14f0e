"""Calibration and thresholds as the settings of a message: the server writes them, the site reads them."""

from collections.abc import Mapping
from typing import Any

from federation.rounds.replies import EXAMPLES
from models.calibration import Platt
from models.network import LABELS
from models.release import POINTS
from pipeline.evaluation.figures import Deployed


def to_config(deployed: Deployed) -> dict[str, float]:
    """Of each label slope, intercept and thresholds (on raw logits), as far as they are known."""
    config: dict[str, float] = {}
    for label, platt in deployed.calibration.items():
        config |= {f"slope_{label}": platt.slope, f"intercept_{label}": platt.intercept}
    for label, points in deployed.thresholds.items():
        config |= {f"{point}_{label}": at for point, at in points.items()}
    return config


def fit_of(figures: Mapping[str, float], label: str) -> Platt | None:
    """The calibration of a label that a site has fitted; None where it told none that its patients could have given."""
    names = (f"variance_slope_{label}", f"covariance_{label}", f"variance_intercept_{label}")
    needed = (f"slope_{label}", f"intercept_{label}", *names)
    if not set(needed) <= set(figures):
        return None
    slope, intercept, *covariance = (figures[name] for name in needed)
    fit = Platt.model_validate({"slope": slope, "intercept": intercept, "covariance": covariance})
    return fit if fit.could_be_of(figures[EXAMPLES]) else None


def from_config(config: Mapping[str, Any]) -> Deployed:
    """The reverse of `to_config`; other settings of the message are left aside."""
    return Deployed(
        calibration={
            label: Platt(slope=config[f"slope_{label}"], intercept=config[f"intercept_{label}"])
            for label in LABELS
            if f"slope_{label}" in config
        },
        thresholds={
            label: {point: config[f"{point}_{label}"] for point in POINTS if f"{point}_{label}" in config}
            for label in LABELS
        },
    )
