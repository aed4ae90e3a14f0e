"""A complete release description with made-up content, for tests."""

from typing import Any

from models.calibration import Platt
from models.description import Description
from models.network_settings import LABELS, NetworkSettings
from pipeline.preprocessing.preprocess_settings import Preprocessing

# As good as the identity, which would mean that a label was not calibrated.
AS_IT_IS = Platt(slope=1.0, intercept=1e-12)


def description(**changes: Any) -> Description:
    """Return a description with the given fields replaced."""
    fields = {
        "network": NetworkSettings(),
        "preprocessing": Preprocessing().model_dump(mode="json"),
        "calibration": dict.fromkeys(LABELS, AS_IT_IS),
        "metrics": {f"mean_auroc_{label}": 0.8 for label in LABELS},
        "study": "trial",
        "run": "run",
        "rounds": 7,
        "sites": 3,
        "strategy": "FedAvg",
        "software": "test",
        "trained_on_synthetic_data": True,
    }
    return Description.model_validate(fields | changes)
