"""Converts times in HL7 v2 and FHIR to the site's local time.

A time without zone is local to the site. It is not changed, even in the hour that clocks skip or repeat when summer
time begins or ends: only the calendar day counts, and it is certain. A day without time means midnight of that day.
"""

import re
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta, timezone, tzinfo
from zoneinfo import ZoneInfo

from models.refusal import Refusal
from pipeline.records import reasons

# The data type DTM of HL7 v2.5.1, and dateTime and instant of FHIR R4, with at least the day. FHIR requires seconds and
# a zone with every time, but some systems omit both.
HL7_TIME = re.compile(r"(\d{8})(?:(\d\d)(?:(\d\d)(?:(\d\d)(?:\.\d{1,6})?)?)?)?([+-]\d{4})?", re.ASCII)
FHIR_TIME = re.compile(r"(\d{4}-\d\d-\d\d)(?:T(\d\d):(\d\d)(?::(\d\d)(?:\.\d+)?)?(Z|[+-]\d\d:\d\d)?)?", re.ASCII)
LONG_AGO = datetime.min.replace(tzinfo=UTC)


def hl7_time(text: str, zone: tzinfo | None = None) -> datetime | None:
    """Return the time in `text`, without fractions of a second; None unless it is well-formed and exists.

    A time without offset gets `zone`. A day without time gets no zone.
    """
    return _time(HL7_TIME.fullmatch(text), zone)


def hl7_length(text: str) -> timedelta:
    """Return how long the day, hour or minute in `text` lasts; nothing if `text` has seconds or is not well-formed."""
    match = HL7_TIME.fullmatch(text)
    written = sum(part is not None for part in match.groups()[:4]) if match else 0
    lengths = {1: timedelta(days=1), 2: timedelta(hours=1), 3: timedelta(minutes=1)}
    return lengths.get(written, timedelta())


def fhir_time(text: str) -> datetime | None:
    """Return the time in `text` as `hl7_time` does, for the format of FHIR."""
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
    """Return the offset as a time zone. Raises ValueError if it is a day or more."""
    if text == "Z":
        return UTC
    hours, minutes = int(text[1:3]), int(text[-2:])
    return timezone((-1 if text[0] == "-" else 1) * timedelta(hours=hours, minutes=minutes))


def _at(moment: datetime, zone: tzinfo) -> datetime | None:
    """Return the same instant in `zone`; None beyond the ends of the calendar."""
    try:
        return moment.astimezone(zone)
    except OverflowError:
        return None


@dataclass(frozen=True)
class Clock:
    """The site's clock; `zone` is None if the site has not set its time zone."""

    zone: ZoneInfo | None

    @classmethod
    def of(cls, name: str) -> "Clock":
        """Make the clock of an IANA zone, or without a zone if `name` is empty."""
        return cls(ZoneInfo(name) if name else None)

    def local(self, moment: datetime) -> datetime | None:
        """Return the site's local time, without zone; None beyond the ends of the calendar.

        Raises Refusal E_TIME_ZONE.
        """
        if moment.tzinfo is None:
            return moment
        if self.zone is None:
            raise Refusal(reasons.TIME_ZONE)
        there = _at(moment, self.zone)
        return there and there.replace(tzinfo=None, fold=0)

    def of_scan(self, moment: datetime) -> datetime | None:
        """Return the local time of a scan, without zone; None beyond the ends of the calendar.

        Without the site's zone it is the time as written: a scanner writes the time of its place, and its offset.
        """
        return moment.replace(tzinfo=None) if self.zone is None else self.local(moment)

    def instant(self, moment: datetime | None) -> datetime:
        """Return a time that sorts versions, `LONG_AGO` for None. Raises Refusal E_TIME_ZONE."""
        if moment is None:
            return LONG_AGO
        if moment.tzinfo is None:
            moment = moment.replace(tzinfo=self.zone or UTC)  # if no time has a zone, any zone gives the same order
        elif self.zone is None:
            raise Refusal(reasons.TIME_ZONE)
        return _at(moment, UTC) or LONG_AGO

    def span(self, text: str, zone: tzinfo | None) -> tuple[datetime, datetime]:
        """Return the instants between which the time in `text` (HL7) lies: equal if it is exact to the second.

        A time or day without offset is one of `zone`. Both are `LONG_AGO` without a time. Raises Refusal E_TIME_ZONE.
        """
        moment = hl7_time(text, zone)
        if moment is None:
            return LONG_AGO, LONG_AGO
        moment = moment if moment.tzinfo else moment.replace(tzinfo=zone)
        begin = self.instant(moment)
        try:
            return begin, max(begin, self.instant(moment + hl7_length(text)))
        except OverflowError:  # the last day of the calendar
            return begin, begin

    def zone_of(self, sent: datetime | None) -> tzinfo | None:
        """Return the zone of a message's own time, which applies to all its times without one (HL7 v2.5.1, MSH-7).

        Returns None if it is the site's zone: then these times follow the site's summer time.
        """
        if sent is None or sent.tzinfo is None:
            return None
        here = self.zone and _at(sent, self.zone)
        return None if here and here.utcoffset() == sent.utcoffset() else sent.tzinfo
