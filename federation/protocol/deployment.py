"""Encode calibration and thresholds as settings of a message: the server writes them, the site reads them."""

from collections.abc import Mapping
from typing import Any

from federation.protocol.pooled_calibration import settings_of
from models.calibration import Platt
from models.network_settings import LABELS
from models.operating_points import POINTS
from pipeline.evaluation.figures import Deployed


def to_config(deployed: Deployed) -> dict[str, float]:
    """Return slope, intercept and thresholds (on raw logits) of each label, as far as they are known."""
    return settings_of(deployed.calibration, deployed.thresholds)


def from_config(config: Mapping[str, Any]) -> Deployed:
    """Decode what `to_config` encoded; the message's other settings are ignored."""
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
