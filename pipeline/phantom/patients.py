"""The patients of a synthetic hospital: age, sex, cause of illness, PCR, and outcome.

Severity (intubation or death within 30 days) is drawn from an explicit formula, so that the model can be compared with
the best possible reader, who knows the true lesion load:

    logit P(severe) = -4.4 + 16 * load + 20 * consolidation + 0.055 * (age_years - 60)

with `load` and `consolidation` as shares of the lungs. The direction of each term follows the clinical literature
(extent of disease, consolidation and age predict intubation and death); the numbers are ours.
"""

from dataclasses import dataclass
from datetime import datetime, timedelta

import numpy as np
from numpy.random import Generator

from pipeline.phantom.lesions import Lesions, Pattern

SEVERE_INTERCEPT, SEVERE_PER_LOAD, SEVERE_PER_CONSOLIDATION, SEVERE_PER_YEAR = -4.4, 16.0, 20.0, 0.055
FIRST_DAY = datetime(2020, 3, 2)


@dataclass(frozen=True)
class CaseMix:
    """The case mix of one hospital."""

    pcr_prevalence: float
    mean_age_years: float
    median_load: float  # of Covid pneumonia, share of the lungs
    severe_intercept: float = SEVERE_INTERCEPT  # of the formula above; a higher value makes more patients severe
    lesion_density: float = 1.0  # share of its usual density that a lesion adds; fainter lesions are harder to see


@dataclass(frozen=True)
class Patient:
    """One synthetic patient as drawn, before the scan is made."""

    patient_id: str
    name: str
    age_years: int
    sex: str
    pcr_positive: bool
    pattern: Pattern
    load: float  # target; the planted load differs slightly
    consolidated: float
    scanned: datetime


def draw_patient(patient_id: str, name: str, mix: CaseMix, rng: Generator) -> Patient:
    """Draw one patient of a hospital's case mix; one Covid patient in ten has clear lungs."""
    positive = bool(rng.random() < mix.pcr_prevalence)
    if positive:
        pattern: Pattern = "covid" if rng.random() < 0.9 else "none"
        load = float(np.clip(mix.median_load * np.exp(rng.normal(0, 0.8)), 0.02, 0.6))
        consolidated = float(rng.beta(1.2, 3.0)) * 0.6
    else:
        pattern = "other" if rng.random() < 0.35 else "none"
        load, consolidated = float(rng.uniform(0.04, 0.25)), float(rng.uniform(0.4, 0.8))
    return Patient(
        patient_id=patient_id,
        name=name,
        age_years=int(np.clip(rng.normal(mix.mean_age_years, 15), 20, 96)),
        sex="F" if rng.random() < 0.45 else "M",
        pcr_positive=positive,
        pattern=pattern,
        load=load if pattern != "none" else 0.0,
        consolidated=consolidated,
        scanned=FIRST_DAY + timedelta(minutes=int(rng.integers(0, 60 * 24 * 60))),
    )


def probability_severe(lesions: Lesions, age_years: int, intercept: float = SEVERE_INTERCEPT) -> float:
    """Return P(severe) by the formula of this module's docstring, with a hospital's own intercept."""
    logit = (
        intercept
        + SEVERE_PER_LOAD * lesions.load
        + SEVERE_PER_CONSOLIDATION * lesions.consolidation
        + SEVERE_PER_YEAR * (age_years - 60)
    )
    return float(1 / (1 + np.exp(-logit)))
