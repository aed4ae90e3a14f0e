"""Tests of dates and times in settings and in the API: only ISO 8601 text is accepted, never a number."""

import json
from datetime import UTC, date, datetime
from typing import Any

import pytest
from pydantic import TypeAdapter, ValidationError

from pipeline.site.pacs_settings import Filters
from pipeline.system.days import Day, Moment, check_day

NO_DAYS = [0, 86400, -86400, 0.0, True, "0", "86400", "1e5", "2024-01-01T00:00:00", "2024-01-01T00:00:00Z", "20240101"]
NO_DAYS += ["2024-1-1", " 2024-01-01", "2024-02-30", "٢٠٢٤-01-01", "", "null", [], {}]


@pytest.mark.parametrize("value", NO_DAYS, ids=repr)
def test_value_that_is_not_an_iso_date_is_refused(value: Any) -> None:
    for read in (TypeAdapter(Day).validate_python, lambda each: TypeAdapter(Day).validate_json(json.dumps(each))):
        with pytest.raises(ValidationError):
            read(value)
    with pytest.raises(ValidationError):
        Filters.model_validate({"from_date": value})
    with pytest.raises(ValidationError):
        Filters.model_validate({"to_date": value})


def test_iso_date_is_accepted() -> None:
    adapter, day = TypeAdapter(Day), date(2024, 2, 29)
    assert [adapter.validate_python("2024-02-29"), adapter.validate_python(day)] == [day, day]
    assert adapter.validate_json('"2024-02-29"') == day
    with pytest.raises(ValidationError):
        adapter.validate_python(datetime(2024, 2, 29, tzinfo=UTC))


@pytest.mark.parametrize("value", [0, 1_700_000_000, 1.5, "0", "1700000000", "2024-01-01", "2024-01-01T00:00", True])
def test_value_that_is_not_an_iso_time_with_time_zone_is_refused(value: Any) -> None:
    with pytest.raises(ValidationError):
        TypeAdapter(Moment).validate_python(value)


@pytest.mark.parametrize("text", ["2024-01-01T00:00Z", "2024-01-01T00:00:00+00:00", "2024-01-01T01:00:00.5+01:00"])
def test_iso_time_with_time_zone_is_accepted(text: str) -> None:
    assert TypeAdapter(Moment).validate_python(text).date() == date(2024, 1, 1)


@pytest.mark.parametrize("value", [0, 0.0, 1, False, "", "2024-01-01", datetime(2024, 1, 1)])
def test_store_accepts_only_dates(value: Any) -> None:
    with pytest.raises(TypeError):
        check_day(value)
    assert (check_day(None), check_day(date(2024, 1, 1))) == (None, date(2024, 1, 1))
