"""A complete release description with made-up content, for tests."""

from typing import Any

from models.calibration import Platt
from models.description import Description
from models.network import LABELS, NetworkSettings
from pipeline.preprocessing.preprocess import Preprocessing


def description(**changes: Any) -> Description:
    """Return a description with the given fields replaced."""
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
