"""What is asked of a PACS, and the series that it describes, whichever protocol it speaks."""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import date, timedelta
from typing import Literal

from pydicom.config import IGNORE
from pydicom.uid import UID

TRUNCATED_AT = 100  # results; many PACS silently truncate at such a number: repeat the query with fewer days
_FIRST_CT = date(1971, 1, 1)
Days = tuple[date | None, date | None]  # the first and the last, inclusive; None: any


@dataclass(frozen=True)
class StudyQuery:
    """A search for studies. Days are inclusive; None, and empty lists of accession numbers or body parts, mean any.

    `patient_id`: '' for any. `at_most`: maximum number of series; None for all.
    """

    modality: str = "CT"
    from_date: date | None = None
    to_date: date | None = None
    accessions: tuple[str, ...] = ()
    body_parts: tuple[str, ...] = ()  # in upper case; of the series, not of the study
    patient_id: str = ""
    at_most: int | None = None

    def misses(self, series: "RemoteSeries") -> Literal["", "patient", "accession", "day", "modality", "body part"]:
        """Return which criterion a series does not meet; '' if it meets all.

        Patient, accession number and day are checked too: a PACS that cannot filter by them returns everything.
        """
        if self.patient_id and series.patient_id != self.patient_id:
            return "patient"
        if self.accessions and series.accession not in self.accessions:
            return "accession"
        if not is_within(series.study_date, self.from_date, self.to_date):
            return "day"
        if series.modality != self.modality:
            return "modality"
        return "body part" if self.body_parts and series.body_part.upper() not in self.body_parts else ""

    def is_met(self, found: Iterable["RemoteSeries"]) -> bool:
        """Whether enough series are found."""
        return self.at_most is not None and sum(not self.misses(series) for series in found) >= self.at_most


@dataclass(frozen=True)
class RemoteSeries:
    """One series as the PACS describes it; '' if unknown. It names the patient, so it must not leave this process."""

    patient_id: str
    issuer: str
    accession: str
    study_uid: str
    series_uid: str
    modality: str
    body_part: str
    images: int | None
    patient_name: str = ""
    study_date: str = ""  # YYYYMMDD
    description: str = ""  # of the series


def is_within(day: str, first: date | None, last: date | None) -> bool:
    """Whether a DA lies between two days, inclusive, or says nothing. Old versions of DICOM wrote 2024.01.31."""
    digits = day.replace(".", "").replace("-", "")
    if len(digits) != 8 or not (digits.isascii() and digits.isdecimal()):
        return True
    return (first is None or digits >= f"{first:%Y%m%d}") and (last is None or digits <= f"{last:%Y%m%d}")


def halves(first: date | None, last: date | None) -> list[Days]:
    """Divide some days into two halves; return nothing if it is one day."""
    start, end = first or _FIRST_CT, last or date.today()
    if start >= end:
        return []
    middle = start + (end - start) // 2
    return [(start, middle), (middle + timedelta(days=1), end)]


def valid_uid(value: str) -> str:
    """Return a UID, '' if it is not valid (PS3.5, 9.1): the PACS could not be asked for it."""
    uid = UID(value, IGNORE)  # no warning, which would quote it
    return str(uid) if uid.is_valid else ""
