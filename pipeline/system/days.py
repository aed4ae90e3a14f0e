"""Types for pydantic models: a calendar day and a time in ISO 8601.

pydantic also accepts numbers for both, as seconds since 1970, and would turn a mistake such as 0 into 1970-01-01.
"""

import re
from datetime import date, datetime
from typing import Annotated, Any

from pydantic import AwareDatetime, BeforeValidator

_DAY = re.compile(r"\d{4}-\d\d-\d\d", re.ASCII)
_MOMENT = re.compile(r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d.*", re.ASCII)


def check_day(day: date | None) -> date | None:
    """Return the same day. Raises TypeError for anything but a date or None, also for a datetime."""
    if day is not None and type(day) is not date:
        raise TypeError(f"a day is a date, not {type(day).__name__}")
    return day


def _day(value: Any) -> Any:
    """Check a day before pydantic parses it. Raises ValueError."""
    if type(value) is date or (isinstance(value, str) and _DAY.fullmatch(value)):
        return value
    raise ValueError("a day must have the form YYYY-MM-DD")


def _moment(value: Any) -> Any:
    """Check a time before pydantic parses it. Raises ValueError."""
    if isinstance(value, datetime) or (isinstance(value, str) and _MOMENT.fullmatch(value)):
        return value
    raise ValueError("a time must have the form YYYY-MM-DDTHH:MM, with its time zone")


Day = Annotated[date, BeforeValidator(_day)]
Moment = Annotated[AwareDatetime, BeforeValidator(_moment)]
