"""The content of a release's model.json: what the model is, what it learnt from and how it did."""

import math
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, field_validator

from models.adaptation import Adaptation
from models.calibration import Platt
from models.familiarity import Familiarity
from models.network_settings import LABELS, NetworkSettings
from models.operating_points import NO_POINT, POINTS, MissingPoint, OperatingPoint
from models.provenance import FlagRecord, Provenance
from models.reasons import NOT_RELEASED

NOT_CALIBRATED = "No number: no hospital had enough validation patients to calibrate this model for it."
NOT_JUDGED = "No number: no hospital had enough test patients to evaluate this model for it."
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


class EncoderRecord(BaseModel):
    """The frozen encoder whose features the model uses: its name for people, where it comes from, its licence."""

    model_config = ConfigDict(extra="forbid")

    name: str
    source: str
    licence: str


class Description(BaseModel):
    """The content of model.json. `calibration`: only of labels that were calibrated.

    `operating_points`: by label, thresholds on the calibrated probability: rule out below "rule_out", rule in at or
    above "rule_in". `missing_points`: by label, why a point is not among them; earlier versions did not record it.
    `provenance`: of a released model; a candidate and a baseline have none. `encoder`: of a released model that uses
    one. `adaptation`: of a release that a hospital derived from another one.
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
    operating_points: dict[str, dict[str, OperatingPoint]] = {}
    missing_points: dict[str, dict[str, MissingPoint]] = {}
    familiarity: Familiarity | None = None
    provenance: Provenance | None = None
    encoder: EncoderRecord | None = None
    adaptation: Adaptation | None = None
    intended_use: str = INTENDED_USE
    limits: tuple[str, ...] = LIMITS
    weights_sha256: str = ""

    def why_no_number(self, label: str) -> str | None:
        """Return why this model gives no number for a label, None if it gives one: deny by default.

        A label must have been calibrated on validation patients and judged on test patients. Versions that calibrated
        every label wrote the identity where no hospital had a calibration.
        """
        if self.calibration.get(label, Platt()) == Platt():
            return NOT_CALIBRATED
        return None if self._is_judged(label) else NOT_JUDGED

    @property
    def doubts(self) -> tuple[FlagRecord, ...]:
        """Reasons to doubt this model; that nobody looked for them is one. Earlier versions knew those of the audit."""
        if self.provenance is None:
            return (FlagRecord(code=NOT_RELEASED.code, site="", says=NOT_RELEASED.says),)
        return self.provenance.doubts or (self.provenance.audit.flags if self.provenance.audit else ())

    @property
    def released_because(self) -> str:
        """Why the model was released in spite of its doubts; "" without any, or if nobody released it."""
        return self.provenance.despite_flags if self.provenance else ""

    @property
    def without_number(self) -> dict[str, str]:
        """Why a label gets no number, for each of those that get none."""
        return {label: why for label in self.labels if (why := self.why_no_number(label))}

    def _is_judged(self, label: str) -> bool:
        """Whether the AUROC of a label is known: of a hospital or of all together; in a candidate as a mean."""
        if self.provenance is None:
            return math.isfinite(self.metrics.get(f"mean_auroc_{label}", math.nan))
        names = (f"auroc_{label}", f"auroc_{label}_low", f"auroc_{label}_high")
        figures = [record.figures for record in self.provenance.sites.values()]
        if self.provenance.sums:
            figures.append(self.provenance.sums.together)
        return any(all(math.isfinite(each.get(name, math.nan)) for name in names) for each in figures)

    @field_validator("operating_points", "missing_points")
    @classmethod
    def points_are_known(cls, points: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
        if points.keys() - set(LABELS) or any(each.keys() - set(POINTS) for each in points.values()):
            raise ValueError(f"operating points must be {POINTS} for {LABELS}")
        return points

    def thresholds(self) -> dict[str, dict[str, float]]:
        """Return the thresholds on the calibrated probability, by label and point."""
        return {label: {name: at.threshold for name, at in of.items()} for label, of in self.operating_points.items()}

    def why_missing(self, label: str) -> dict[str, str]:
        """Return by point why a label has no such threshold, in a sentence; {} if it has both."""
        there, missing = self.operating_points.get(label, {}), self.missing_points.get(label, {})
        without = [point for point in POINTS if point not in there]
        return {point: missing[point].text(point) if point in missing else NO_POINT for point in without}
