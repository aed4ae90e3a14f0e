"""What is asked of a PACS, and the series that it describes, whichever protocol it speaks."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import date, timedelta
from typing import Literal

from pydicom.config import IGNORE
from pydicom.uid import UID

TRUNCATED_AT = 100  # results; many PACS silently truncate at such a number: repeat the query with fewer days
_FIRST_CT = date(1971, 1, 1)
Days = tuple[date | None, date | None]  # the first and the last, inclusive; None: any
Minutes = tuple[int, int]  # of the day, the first and the last, inclusive
_LAST_MINUTE = 24 * 60 - 1
WHOLE_DAY: Minutes = (0, _LAST_MINUTE)
_TIME = re.compile(r"(\d\d):?(\d\d)?", re.ASCII)  # of a TM; old versions of DICOM wrote 12:30:00


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
    start, end = _ends(first, last)
    if start >= end:
        return []
    middle = start + (end - start) // 2
    return [(start, middle), (middle + timedelta(days=1), end)]


def halves_in_time(days: Days, minutes: Minutes) -> list[tuple[Days, Minutes]]:
    """Divide some days into two halves, and one day, or a part of it, into halves of its minutes.

    Return nothing if it is one minute.
    """
    if parts := halves(*days):
        return [(part, WHOLE_DAY) for part in parts]
    (start, end), (first, last) = _ends(*days), minutes
    if start != end or first == last:
        return []
    middle = (first + last) // 2
    return [((start, end), (first, middle)), ((start, end), (middle + 1, last))]


def time_range(minutes: Minutes) -> str:
    """Return the minutes as a range of TM (PS3.4, C.2.2.2.5), open where the day begins or ends.

    A TM may be short: 12 and 1200 mean 12:00:00. The limits include such values also if a PACS compares them as texts.
    """
    (hour, minute), (last_hour, last_minute) = (divmod(each, 60) for each in minutes)
    first = "" if minutes[0] == 0 else f"{hour:02}{minute:02}" if minute else f"{hour:02}"
    last = "" if minutes[1] == _LAST_MINUTE else f"{last_hour:02}{last_minute:02}59.999999"
    return f"{first}-{last}"


def is_at(time: str, minutes: Minutes) -> bool:
    """Whether a TM lies between two minutes, inclusive, or says nothing."""
    found = _TIME.match(time)
    return found is None or minutes[0] <= int(found[1]) * 60 + int(found[2] or 0) <= minutes[1]


def _ends(first: date | None, last: date | None) -> tuple[date, date]:
    return first or _FIRST_CT, last or date.today()


def valid_uid(value: str) -> str:
    """Return a UID, '' if it is not valid (PS3.5, 9.1): the PACS could not be asked for it."""
    uid = UID(value, IGNORE)  # no warning, which would quote it
    return str(uid) if uid.is_valid else ""


def whole_number(value: str) -> int | None:
    """Return a number as the PACS writes it, None if there is none."""
    return int(value) if value.isdecimal() else None
