"""Times as HL7 v2 and FHIR write them, brought to the site's own time.

A time without zone is the site's. It is kept as it is written even in the hour that clocks skip or repeat when
summer time begins or ends: what counts is the calendar day, and of that there is no doubt. A day without time is
that day's midnight.
"""

import re
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta, timezone, tzinfo
from zoneinfo import ZoneInfo

from models.refusal import Refusal
from pipeline.records import reasons

# HL7 v2.5.1's data type DTM and FHIR R4's dateTime and instant, to the day at least. FHIR wants seconds and a zone
# with every time; systems leave out both.
HL7_TIME = re.compile(r"(\d{8})(?:(\d\d)(?:(\d\d)(?:(\d\d)(?:\.\d{1,6})?)?)?)?([+-]\d{4})?", re.ASCII)
FHIR_TIME = re.compile(r"(\d{4}-\d\d-\d\d)(?:T(\d\d):(\d\d)(?::(\d\d)(?:\.\d+)?)?(Z|[+-]\d\d:\d\d)?)?", re.ASCII)
LONG_AGO = datetime.min.replace(tzinfo=UTC)


def hl7_time(text: str, zone: tzinfo | None = None) -> datetime | None:
    """The time that `text` names, without fractions of a second; None unless it is well-formed and exists.

    A time without offset gets `zone`; a day without time gets none.
    """
    return _time(HL7_TIME.fullmatch(text), zone)


def fhir_time(text: str) -> datetime | None:
    """As `hl7_time`, for FHIR's way of writing."""
    return _time(FHIR_TIME.fullmatch(text), None)


def _time(match: re.Match[str] | None, zone: tzinfo | None) -> datetime | None:
    if match is None:
        return None
    day, hour, minute, second, offset = match.groups()
    try:
        at = date.fromisoformat(day)
        if hour is None:
            return datetime.combine(at, time())
        clock = time(int(hour), int(minute or 0), int(second or 0), tzinfo=_offset(offset) if offset else zone)
        return datetime.combine(at, clock)
    except ValueError:
        return None


def _offset(text: str) -> tzinfo:
    """ValueError unless less than a day."""
    if text == "Z":
        return UTC
    hours, minutes = int(text[1:3]), int(text[-2:])
    return timezone((-1 if text[0] == "-" else 1) * timedelta(hours=hours, minutes=minutes))


def _at(moment: datetime, zone: tzinfo) -> datetime | None:
    """The same instant there; None beyond the ends of the calendar."""
    try:
        return moment.astimezone(zone)
    except OverflowError:
        return None


@dataclass(frozen=True)
class Clock:
    """The site's time; `zone` is None where the site has not said in which it lies."""

    zone: ZoneInfo | None

    @classmethod
    def of(cls, name: str) -> "Clock":
        """The clock of an IANA zone, or of no known zone if `name` is empty."""
        return cls(ZoneInfo(name) if name else None)

    def local(self, moment: datetime) -> datetime | None:
        """The site's own time, without zone; None beyond the ends of the calendar. Raises Refusal E_TIME_ZONE."""
        if moment.tzinfo is None:
            return moment
        if self.zone is None:
            raise Refusal(reasons.TIME_ZONE)
        there = _at(moment, self.zone)
        return there and there.replace(tzinfo=None, fold=0)

    def instant(self, moment: datetime | None) -> datetime:
        """A time by which versions are put in order; `LONG_AGO` for None. Raises Refusal E_TIME_ZONE."""
        if moment is None:
            return LONG_AGO
        if moment.tzinfo is None:
            moment = moment.replace(tzinfo=self.zone or UTC)  # without a zone anywhere, any will do
        elif self.zone is None:
            raise Refusal(reasons.TIME_ZONE)
        return _at(moment, UTC) or LONG_AGO

    def zone_of(self, sent: datetime | None) -> tzinfo | None:
        """The zone of a message's own time, which holds for all its times without one (HL7 v2.5.1, MSH-7).

        None where that is the site's zone: then those times change with summer time, as the site's do.
        """
        if sent is None or sent.tzinfo is None:
            return None
        here = self.zone and _at(sent, self.zone)
        return None if here and here.utcoffset() == sent.utcoffset() else sent.tzinfo
