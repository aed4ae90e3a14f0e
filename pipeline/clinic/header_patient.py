"""The patient that a scan's headers name. An identifier that could not be decoded counts as none (`is_decoded`)."""

from pydicom import Dataset

from models.refusal import Refusal
from pipeline.clinic.records import Patient
from pipeline.imaging.dates_and_ages import age_in_years, patient_age
from pipeline.imaging.dicom_header import identifier, is_decoded, text_or_nothing

_UNREADABLE = "\N{REPLACEMENT CHARACTER}"  # as an identifier: not decoded


def patient_in_headers(patient_id: str, issuer: str, name: str, sex: str | None, age_years: float | None) -> Patient:
    """Make the patient; identifier and issuer, or the name, are empty if they could not be decoded."""
    if not is_decoded(patient_id, issuer):
        patient_id = issuer = ""
    return Patient(patient_id, issuer, name if is_decoded(name) else "", sex, age_years)


def patient_of(header: Dataset) -> Patient:
    """Return the patient of a damaged header too: what cannot be read counts as absent.

    If one of identifier and issuer cannot be read, both are empty: the other one could name somebody else.
    """
    return patient_in_headers(
        _identifier(header, "PatientID"),
        _identifier(header, "IssuerOfPatientID"),
        name_in(header),
        text_or_nothing(header, "PatientSex") or None,
        age_in_years(patient_age(header)),
    )


def name_in(header: Dataset) -> str:
    """Return PatientName, '' if it cannot be read: a scan can be scored without it."""
    return text_or_nothing(header, "PatientName")


def _identifier(header: Dataset, keyword: str) -> str:
    try:
        return identifier(header, keyword)
    except Refusal:
        return _UNREADABLE
