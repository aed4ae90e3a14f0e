"""The content of a release's model.json: what the model is, what it learnt from and how it did."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from models.calibration import Platt
from models.familiarity import Familiarity
from models.network import LABELS, NetworkSettings
from models.provenance import Provenance

POINTS = ("rule_out", "rule_in")
INTENDED_USE = (
    "Research on the recognition of severe Covid-19 (intubation or death within 30 days of the CT) in adults with a "
    "chest CT and a PCR result. `severe` is meant for PCR-positive patients alone."
)
LIMITS = (
    "Not validated on any patient of another hospital than those named here.",
    "No use for children, for other diseases, or for deciding on care.",
    "A probability without its interval and without the quality checks is not an answer.",
    "Scanners, protocols, variants of the virus and treatment change: figures of the past may not hold.",
)

Probability = Annotated[float, Field(ge=0, le=1)]


class Privacy(BaseModel):
    """Differential privacy of the training: (ε, `delta`) for each patient, by site.

    `epsilon` is None if a site took part but did not report it.
    """

    model_config = ConfigDict(extra="forbid")

    noise_multiplier: float
    sample_rate: float
    max_grad_norm: float
    delta: float
    epsilon: dict[str, float | None]


class Description(BaseModel):
    """The content of model.json.

    `operating_points`: by label, thresholds on the calibrated probability: rule out below "rule_out", rule in at or
    above "rule_in". `provenance`: of a released model; a candidate and a baseline have none.
    """

    model_config = ConfigDict(extra="forbid")

    format: Literal[1] = 1
    network: NetworkSettings
    preprocessing: dict[str, Any]
    labels: tuple[Literal["pcr_positive"], Literal["severe"]] = LABELS
    calibration: dict[str, Platt]
    study: str
    run: str
    rounds: int
    sites: int
    strategy: str
    software: str
    trained_on_synthetic_data: bool
    metrics: dict[str, float] = {}
    privacy: Privacy | None = None
    operating_points: dict[str, dict[str, Probability]] = {}
    familiarity: Familiarity | None = None
    provenance: Provenance | None = None
    intended_use: str = INTENDED_USE
    limits: tuple[str, ...] = LIMITS
    weights_sha256: str = ""

    @field_validator("operating_points")
    @classmethod
    def points_are_known(cls, points: dict[str, dict[str, float]]) -> dict[str, dict[str, float]]:
        if points.keys() - set(LABELS) or any(each.keys() - set(POINTS) for each in points.values()):
            raise ValueError(f"operating points must be {POINTS} for {LABELS}")
        return points
