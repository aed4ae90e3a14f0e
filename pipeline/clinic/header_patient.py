"""The patient that a scan's headers name. An identifier that could not be decoded counts as none (`is_decoded`)."""

from pipeline.clinic.records import Patient
from pipeline.imaging.discovery import is_decoded


def patient_in_headers(patient_id: str, issuer: str, name: str, sex: str | None, age_years: float | None) -> Patient:
    """Make the patient; identifier and issuer, or the name, are empty if they could not be decoded."""
    if not is_decoded(patient_id, issuer):
        patient_id = issuer = ""
    return Patient(patient_id, issuer, name if is_decoded(name) else "", sex, age_years)
