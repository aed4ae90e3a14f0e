"""Calibration and thresholds as the settings of a message: the server writes them, the site reads them."""

from collections.abc import Mapping
from typing import Any

from federation.protocol.pooled_calibration import settings_of
from models.calibration import Platt
from models.network import LABELS
from models.release import POINTS
from pipeline.evaluation.figures import Deployed


def to_config(deployed: Deployed) -> dict[str, float]:
    """Of each label slope, intercept and thresholds (on raw logits), as far as they are known."""
    return settings_of(deployed.calibration, deployed.thresholds)


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
