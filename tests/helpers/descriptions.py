"""A complete release description with made-up content, for tests."""

from typing import Any

from models.calibration import Platt
from models.description import Description
from models.network_settings import LABELS, NetworkSettings
from models.provenance import Provenance, SiteRecord
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


def provenance(**is_trained: bool) -> Provenance:
    """Return the provenance of a run with these sites; a model was trained on the patients of those that are True."""
    site = SiteRecord(patients="", software="", trained=True, rounds=3, dropouts={}, figures={}, left_out={})
    return Provenance(
        candidate="",
        seed=1,
        rounds_planned=3,
        rounds_lost=0,
        stopped_early=False,
        strategy_options={},
        sites={name: site.model_copy(update={"trained": trained}) for name, trained in is_trained.items()},
        audit=None,
        study={},
    )
