"""Patients with phantom scans in the default shape of studies, prepared by the release's own preprocessing.

A random body takes seconds, so all attacks of a process share one set of patients: the first are the server's own, the
others are those of the attacked hospitals.
"""

import itertools
from collections.abc import Sequence
from dataclasses import replace
from functools import cache

import numpy as np
from numpy.typing import NDArray

from models.refusal import Refusal
from pipeline.phantom.cohorts import volume_of
from pipeline.phantom.generate import make_body
from pipeline.phantom.hospitals import hospital
from pipeline.phantom.patients import draw_patient
from pipeline.phantom.scans import acquire
from pipeline.preprocessing.preprocess import prepare
from pipeline.preprocessing.preprocess_settings import Preprocessing
from pipeline.site.folder import Split
from tests.attacks.cohort import Patient

PREPROCESSING = Preprocessing(method=1)
_SEED = 7_100


@cache
def ward(number: int) -> Patient | None:
    """Return the patient with this number, in the training split; None if preprocessing refuses the scan."""
    at, rng = hospital(0), np.random.default_rng([_SEED, number])
    person = draw_patient(f"WARD-{number:06d}", "SYNTHETIC^WARD", at.mix, rng)
    lesions, chance = make_body(person, at, rng)
    severe = bool(rng.random() < chance) if person.pcr_positive else None
    try:
        tensor = prepare(volume_of(acquire(lesions.hu, at.scanner, rng), at.scanner.grid), PREPROCESSING).tensor
    except Refusal:
        return None
    return Patient("train", person.age_years, person.sex, bool(person.pcr_positive), severe, tensor)


def ward_patients(first: int, count: int, split: Split = "train") -> list[Patient]:
    """Return this many patients, from this number on."""
    drawn = (patient for number in itertools.count(first) if (patient := ward(number)) is not None)
    return [replace(patient, split=split) for patient in itertools.islice(drawn, count)]


def scans(patients: Sequence[Patient]) -> NDArray[np.float32]:
    """Return their tensors, shape (patients, 2, slices, rows, columns), float32."""
    return np.stack([patient.tensor for patient in patients]).astype(np.float32)
