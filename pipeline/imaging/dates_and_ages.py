"""Reads the time of a scan and the age of its patient from a DICOM header.

Placeholders, and values that cannot be read, count as missing: a scan without them can be used.
"""

import re
from datetime import date, datetime, timedelta, timezone

from pydicom import Dataset

from pipeline.imaging.dicom_header import text_or_nothing

DATES = (
    *("AcquisitionDate", "AcquisitionTime", "SeriesDate", "SeriesTime", "StudyDate", "StudyTime"),
    *("AcquisitionDateTime", "TimezoneOffsetFromUTC"),
)
AGE = ("PatientAge", "PatientBirthDate", *DATES)  # what `patient_age` needs
_FIRST_CT_YEAR = 1972  # earlier dates are placeholders of de-identification tools
_PLACEHOLDER_BEFORE = timedelta(days=30)  # as much longer before its series or study a 1 January is one too: 20000101
_OLDEST_YEARS = 120
_FIRST_BIRTH_YEAR = 1901  # earlier dates are placeholders too: 19000101, 18991230
_YEARS_PER_UNIT = {"Y": 1.0, "M": 1 / 12, "W": 7 / 365.25, "D": 1 / 365.25}
_WHOLE_TIME = re.compile(r"(.{0,8})(.*?)([+-]\d{4})?", re.ASCII | re.DOTALL)  # a DT: day, time, offset (PS3.5, 6.2)
_OFFSET = re.compile(r"([+-])(\d\d)([0-5]\d)", re.ASCII)
_OFFSETS = range(-12 * 60, 14 * 60 + 1)  # in minutes, as PS3.3 allows them


def age_in_years(age: str) -> float | None:
    """Convert an Age String, e.g. 063Y or 010M (DICOM PS3.5, 6.2); scanners write zero for 'not entered'."""
    match = re.fullmatch(r"(\d{1,3})([DWMY])", age.strip(), flags=re.ASCII)
    years = int(match[1]) * _YEARS_PER_UNIT[match[2]] if match else 0.0
    return years if 0 < years <= _OLDEST_YEARS else None


def patient_age(header: Dataset) -> str:
    """Return the age at the scan as an Age String, '' if unknown.

    If PatientAge is absent or cannot be used, the age is calculated from PatientBirthDate and the day of the scan.
    """
    stated = text_or_nothing(header, "PatientAge").strip()
    if age_in_years(stated) is not None:
        return stated
    born = text_or_nothing(header, "PatientBirthDate").strip()
    acquired, _ = acquired_at(header)
    return _age_on(acquired.date(), born) if acquired else ""


def _age_on(day: date, born: str) -> str:
    """Return the age on a day as an Age String: whole years, in the first year months, in the first month days.

    '' if the birth date is malformed or a placeholder, or not before that day.
    """
    birth = _day(born)
    if birth is None or birth.year < _FIRST_BIRTH_YEAR or birth >= day:
        return ""
    months = (day.year - birth.year) * 12 + day.month - birth.month - (day.day < birth.day)
    if months == 0:
        return f"{(day - birth).days:03d}D"
    if months < 12:
        return f"{months:03d}M"
    return f"{months // 12:03d}Y" if months // 12 <= _OLDEST_YEARS else ""


def acquired_at(header: Dataset) -> tuple[datetime | None, bool]:
    """Return the first usable date of acquisition, series or study, with its own time or midnight.

    A time has a time zone if the header states its offset from UTC, in TimezoneOffsetFromUTC (DICOM PS3.3, C.12.1.1.8)
    or in AcquisitionDateTime, which overrides it. A day without time cannot be converted, so it has none.

    Placeholders of de-identification tools do not count: days before 1972, and each 1 January that is more than 30 days
    before the series or the study, because an image is not older than its study.

    Also return whether it has a time of its own.
    """
    whole = _WHOLE_TIME.fullmatch(text_or_nothing(header, "AcquisitionDateTime").strip())
    assert whole is not None  # it matches every text
    day, clock, suffix = whole.groups("")
    acquisition, *others = [
        (text_or_nothing(header, f"{event}Date"), text_or_nothing(header, f"{event}Time"))
        for event in ("Acquisition", "Series", "Study")
    ]
    stated = _zone(text_or_nothing(header, "TimezoneOffsetFromUTC"))
    own = _zone(suffix) or stated
    is_same = _moment(*acquisition) == _moment(day, clock)  # then the offset of one is that of the other
    # Multi-frame images have AcquisitionDateTime instead of two attributes.
    candidates = [(*acquisition, own if is_same else stated), (day, clock, own), *((*each, stated) for each in others)]
    latest = max((found[0] for each in others if (found := _moment(*each))), default=datetime.min)
    for day, clock, zone in candidates:
        found = _moment(day, clock)
        if found and not _is_placeholder(found[0], latest):
            acquired, has_clock = found
            return acquired.replace(tzinfo=zone if has_clock else None), has_clock
    return None, True


def _moment(day: str, clock: str) -> tuple[datetime, bool] | None:
    """Return the time of a DA and a TM, and whether it is more than a day; None if it cannot be that of a CT."""
    on = _day(day)
    at = re.match(r"\d{6}|\d{4}|\d{2}", clock.strip(), flags=re.ASCII)
    try:
        time = datetime.strptime((at[0] if at else "").ljust(6, "0"), "%H%M%S").time()
    except ValueError:
        return None
    found = datetime.combine(on, time) if on else None
    # One day of tolerance: the scanner may be in another time zone than this machine.
    if found is None or found.year < _FIRST_CT_YEAR or found > datetime.now() + timedelta(days=1):
        return None
    return found, at is not None


def _is_placeholder(found: datetime, latest: datetime) -> bool:
    """Whether a day is a placeholder. `latest`: the latest day of the series and the study."""
    return (found.month, found.day) == (1, 1) and latest - found > _PLACEHOLDER_BEFORE


def _day(day: str) -> date | None:
    """Return the day of a DA, None if it is malformed or does not exist."""
    if not re.fullmatch(r"\d{8}", day.strip(), flags=re.ASCII):
        return None
    try:
        return date.fromisoformat(day.strip())
    except ValueError:
        return None


def _zone(offset: str) -> timezone | None:
    """Return an offset from UTC, +0130 or -0800, as a time zone; None if it is malformed or out of range."""
    match = _OFFSET.fullmatch(offset.strip())
    if match is None:
        return None
    minutes = (-1 if match[1] == "-" else 1) * (60 * int(match[2]) + int(match[3]))
    return timezone(timedelta(minutes=minutes)) if minutes in _OFFSETS else None
