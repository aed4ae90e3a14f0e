"""Describes a derived release: a released model whose batch-norm statistics one hospital estimated again.

The statistics of a layer become a mix of those of the release and those of the hospital's scans, SOURCE_SCANS to n
(Schneider et al., Improving robustness against common corruptions by covariate shift adaptation, NeurIPS 2020). All
weights stay. What follows from that for the description is computed here, so that anyone who has the parent can check
that a derived release is exactly the parent with other statistics, and these within the bounds of the mix.

This module works without torch; `models.norm_statistics` computes the statistics.
"""

from datetime import date
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from models.operating_points import AIM, FLOOR, LEAST_PATIENTS, POINTS, MissingPoint, OperatingPoint
from models.provenance import FlagRecord
from models.reasons import ADAPTED

if TYPE_CHECKING:
    from models.description import Description

SOURCE_SCANS: Literal[128] = 128  # weight of the release's own statistics, in scans: N of the mix N : n
LEAST_SCANS = 64  # below, the error of the estimate is as large as the shifts that it should follow
MOST_SCANS = 384  # more are not used: the hospital's scans weigh at most three quarters
LIMIT = "Adapted to one hospital's scanners, without labels. Not for use at another hospital."

Points = dict[str, dict[str, OperatingPoint]]
_Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
_Finite = Annotated[float, Field(allow_inf_nan=False)]


class Judged(BaseModel):
    """One label on the hospital's own labelled validation patients, by the parent (before) and after the adaptation.

    `auroc_change`: after minus before, with the ends of its 95 % interval. `log_loss_change`: the same of the mean
    logarithmic loss of the calibrated probability, in nats; None without a calibration.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    positives: int
    negatives: int
    auroc_before: _Finite
    auroc_after: _Finite
    auroc_change: tuple[_Finite, _Finite, _Finite]
    log_loss_change: tuple[_Finite, _Finite, _Finite] | None = None


class Adaptation(BaseModel):
    """The origin of a derived release. `parent`: SHA-256 of the parent's model.json.

    `parent_signed_by`: fingerprint of the key that signed the parent. `scans`: number of the hospital's scans behind
    the statistics; `found`: number of scans without a label; `unfamiliar`: of these, outside the release's limit and
    not used. `judged`: labels for which the hospital has enough labelled validation patients.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    format: Literal[1] = 1
    parent: _Sha256
    parent_signed_by: _Sha256
    site: str = Field(pattern=r"^[a-z0-9][a-z0-9-]{0,39}$")
    adapted_on: date
    software: str
    source_scans: Literal[128] = SOURCE_SCANS
    scans: int = Field(ge=LEAST_SCANS, le=MOST_SCANS)
    found: int
    unfamiliar: int
    judged: dict[str, Judged] = {}

    @property
    def weight(self) -> float:
        """The share of the hospital's scans in the statistics, 0 to 1."""
        return self.scans / (self.source_scans + self.scans)


def derive(parent: "Description", adaptation: Adaptation, points: Points) -> "Description":
    """Return the description of the derived release; the hash of its weights is still the parent's.

    `points`: the parent's operating points that the hospital judged again; all others are withheld. The parent has a
    `provenance`.
    """
    assert parent.provenance is not None
    flag = FlagRecord(code=ADAPTED.code, site=adaptation.site, says=ADAPTED.says)
    because = " ".join(filter(None, (parent.provenance.despite_flags, f"The hospital {adaptation.site} adapted it.")))
    missing = {
        label: {
            point: parent.missing_points.get(label, {}).get(point, MissingPoint(why="adapted"))
            for point in POINTS
            if point not in points.get(label, {})
        }
        for label in parent.labels
    }
    return parent.model_copy(
        update={
            "study": f"{parent.study}, adapted at {adaptation.site}",
            "operating_points": points,
            "missing_points": {label: of_label for label, of_label in missing.items() if of_label},
            "provenance": parent.provenance.model_copy(
                update={"doubts": (*parent.doubts, flag), "despite_flags": because}
            ),
            "limits": (*parent.limits, LIMIT),
            "adaptation": adaptation,
        }
    )


def are_judged_again(points: Points, parent: "Description") -> bool:
    """Whether each point has the parent's threshold, and evidence of this hospital by the rule for operating points."""
    for label, of_label in points.items():
        for name, at in of_label.items():
            own, e = parent.operating_points.get(label, {}).get(name), at.evidence
            if own is None or own.threshold != at.threshold or e is None or e.sites != 1:
                return False
            if min(e.positives, e.negatives) < LEAST_PATIENTS or e.value < AIM or e.low < FLOOR:
                return False
    return True
