"""Keys that stand for patients, and for other identifiers, in URLs and audit records.

A key is an HMAC-SHA-256 with a secret of this clinic, so that it says nothing outside of it.
"""

import hashlib
import hmac
import json
from dataclasses import asdict, replace

from pipeline.clinic.database import Database
from pipeline.clinic.records import Patient
from pipeline.imaging.dicom_header import is_decoded


class PatientKeys:
    """The keys of one clinic."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def patient_key(self, patient_id: str, issuer: str = "") -> str:
        """Return the patient's key in URLs: 32 hex digits, valid in this clinic only.

        '' if there is no identifier, or one that could not be decoded: the patient is unknown.
        """
        if not patient_id or not is_decoded(patient_id, issuer):
            return ""
        return self._key(f"{len(issuer)}|{issuer}|{patient_id}")

    def hidden(self, kind: str, text: str) -> str:
        """Return a key for a text of a kind, like `patient_key` for a patient; '' for an empty text."""
        return self._key(f"{kind}|{text}") if text else ""

    def keyed(self, patient: Patient) -> Patient:
        """Return the patient with their key in this clinic filled in."""
        return replace(patient, key=self.patient_key(patient.id, patient.issuer))

    def patient_text(self, patient: Patient | None) -> str | None:
        """Return the patient, with their key, as the tables keep them (JSON)."""
        return json.dumps(asdict(self.keyed(patient))) if patient else None

    def _key(self, text: str) -> str:
        found = self._database.row("SELECT value FROM secret WHERE name = 'patients'")
        assert found is not None
        return hmac.new(found["value"], text.encode(errors="surrogatepass"), hashlib.sha256).hexdigest()[:32]
