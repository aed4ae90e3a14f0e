"""A release's description for tests: complete, and true of no model."""

from typing import Any

from models.calibration import Platt
from models.description import Description
from models.network import LABELS, NetworkSettings
from pipeline.preprocessing.preprocess import Preprocessing


def description(**changes: Any) -> Description:
    """A description with some fields changed."""
    fields = {
        "network": NetworkSettings(),
        "preprocessing": Preprocessing().model_dump(mode="json"),
        "calibration": {label: Platt() for label in LABELS},
        "study": "trial",
        "run": "run",
        "rounds": 7,
        "sites": 3,
        "strategy": "FedAvg",
        "software": "test",
        "trained_on_synthetic_data": True,
    }
    return Description.model_validate(fields | changes)
