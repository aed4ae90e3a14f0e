"""Thresholds of a release on the calibrated probability: what is known of them, and why there is none.

Works without torch, for the clinic's server.
"""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

POINTS = ("rule_out", "rule_in")
RATES: Mapping[str, str] = {"rule_out": "sensitivity", "rule_in": "specificity"}  # that the threshold is chosen for
AIM = 0.90  # least estimated rate of a threshold
FLOOR = 0.80  # least lower bound of that rate
CONFIDENCE = 0.95  # one-sided, of each end of the interval
LEAST_PATIENTS = 20  # positive and negative validation patients of all hospitals
NO_POINT = "The release defines no operating points."  # an earlier version did not record why

Probability = Annotated[float, Field(ge=0, le=1)]


class Evidence(BaseModel):
    """The validation patients behind a threshold.

    `value`: the sensitivity (rule_out) or specificity (rule_in), over all hospitals' patients together, in steps of
    three patients. `low`, `high`: its 90 % interval; each end is a one-sided 95 % bound, and allows for the steps.
    `positives`, `negatives`: numbers of patients, rounded down in steps at each of the `sites` hospitals. After a study
    with secure aggregation there are no steps: the numbers are exact sums.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    value: Probability
    low: Probability
    high: Probability
    positives: int
    negatives: int
    sites: int


class OperatingPoint(BaseModel):
    """A threshold on the calibrated probability; a plain number is one that an earlier version chose.

    `evidence`: None where an earlier version chose the threshold, from any number of patients.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    threshold: Probability
    evidence: Evidence | None = None

    @model_validator(mode="before")
    @classmethod
    def of_earlier_versions(cls, content: Any) -> Any:
        """Read a number, and an entry of an earlier results.json, which named the number of sites."""
        if isinstance(content, int | float):
            return {"threshold": content}
        if isinstance(content, dict) and "sites" in content:
            return {name: value for name, value in content.items() if name != "sites"}
        return content


class MissingPoint(BaseModel):
    """Why there is no threshold, and how many validation patients were counted, at how many hospitals.

    `why`: "too_few" patients; "not_reached", no threshold's bound is high enough; "not_calibrated", the label has no
    calibration; "few_hospitals", the sum of a study with secure aggregation has too few hospitals with both classes;
    "adapted", the threshold is that of a release before one hospital adapted it.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    why: Literal["too_few", "not_reached", "not_calibrated", "few_hospitals", "adapted"]
    positives: int = 0
    negatives: int = 0
    sites: int = 0

    def text(self, point: str) -> str:
        """Say in a sentence why there is no threshold for this point of POINTS."""
        if self.why == "not_calibrated":
            return "No operating point: no hospital calibrated this label."
        if self.why == "adapted":
            return "No operating point: adapted at this hospital; the threshold is not backed by evidence after that."
        if self.why == "few_hospitals":
            return f"No operating point: {few_hospitals(self.sites)}."
        found = f"{counts(self.positives, self.negatives, self.sites)} could be counted"
        if self.why == "too_few":
            return f"No operating point: {found}; at least {LEAST_PATIENTS} of each are needed."
        if self.sites == 1:
            return f"No operating point: {found}; at least two hospitals are needed."
        return (
            f"No operating point: {found}, too few to show that a threshold to {point.replace('_', ' ')} "
            f"reaches a {RATES[point]} of {FLOOR:.2f}."
        )


def few_hospitals(sites: int) -> str:
    """Say that a sum has too few hospitals to be used, or that there is none."""
    if not sites:
        return "there is no sum over three hospitals with enough patients of both classes"
    return f"only {sites} of the hospitals had enough patients of both classes; sums over so few hospitals are not used"


def counts(positives: int, negatives: int, sites: int) -> str:
    """Name the numbers of validation patients and hospitals."""
    hospitals = f"{sites} {'hospital' if sites == 1 else 'hospitals'}"
    return f"{positives} positive and {negatives} negative validation patients at {hospitals}"


def evidence_text(point: str, evidence: Evidence | None) -> str:
    """Say in a sentence what a threshold reached on validation patients, with interval and counts."""
    if evidence is None:
        return "The number of patients behind this threshold is not recorded."
    e = evidence
    return (
        f"{RATES[point].capitalize()} {e.value:.2f} (90 % interval {e.low:.2f} to {e.high:.2f}) from "
        f"{counts(e.positives, e.negatives, e.sites)}."
    )
