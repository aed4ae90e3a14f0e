"""The patient that a scan's headers name.

Where bytes do not fit the header's character set, pydicom puts U+FFFD. Identifiers of two patients can then look alike,
so such an identifier counts as none.
"""

from pipeline.clinic.records import Patient

_UNDECODED = "\N{REPLACEMENT CHARACTER}"


def is_decoded(*texts: str) -> bool:
    """Whether all texts of a header were read without loss."""
    return not any(_UNDECODED in text for text in texts)


def patient_in_headers(patient_id: str, issuer: str, name: str, sex: str | None, age_years: float | None) -> Patient:
    """Make the patient; identifier and issuer, or the name, are empty if they could not be decoded."""
    if not is_decoded(patient_id, issuer):
        patient_id = issuer = ""
    return Patient(patient_id, issuer, name if is_decoded(name) else "", sex, age_years)
