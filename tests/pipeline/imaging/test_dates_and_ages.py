"""Tests of the age and the time that a scan gets from its header. The series are synthetic."""

from datetime import datetime, timedelta, timezone

import pytest

from pipeline.imaging.discovery import find_series
from tests.helpers.dicom_files import ct_slice, save

AIR = [[-1000, -1000], [-1000, -1000]]


def write_one(path, **attributes):
    save(ct_slice(AIR, position_mm=(0, 0, 0), **attributes), path)


def scan(folder):
    (series,), findings = find_series(folder)
    assert findings == []
    return series


@pytest.mark.parametrize(
    ("age", "years"),
    [
        ("063Y", 63.0),
        ("010M", 10 / 12),
        ("002W", 14 / 365.25),
        ("63Y", 63.0),
        ("000Y", None),
        ("130Y", None),
        ("-01Y", None),
        ("063", None),
        ("old", None),
        ("", None),
    ],
)
def test_age_is_parsed(tmp_path, age, years):
    write_one(tmp_path / "1", PatientAge=age)
    assert scan(tmp_path).age_years == (years if years is None else pytest.approx(years))


BORN = {"PatientBirthDate": "19571001", "AcquisitionDate": "20200930"}


@pytest.mark.parametrize("age", ["", "63", "0063Y", "063y", "000Y", "old"])
def test_age_is_calculated_if_none_can_be_used(tmp_path, age):
    write_one(tmp_path / "1", PatientAge=age, **BORN)
    assert scan(tmp_path).age_years == 62


def test_stated_age_is_not_calculated(tmp_path):
    write_one(tmp_path / "1", PatientAge="070Y", **BORN)
    assert scan(tmp_path).age_years == 70


@pytest.mark.parametrize(
    ("born", "day", "years"),
    [
        ("19571001", "20201001", 63),
        ("19600229", "20210228", 60),
        ("19600229", "20210301", 61),
        (" 19571001", "20200930", 62),
        ("19100301", "20200930", 110),
        ("20190331", "20200330", 11 / 12),
        ("20200901", "20200930", 29 / 365.25),
        ("20200930", "20200930", None),
        ("20200930", "20200402", None),
        ("19000101", "20200402", None),  # placeholders
        ("18991230", "20190402", None),
        ("11111111", "20200402", None),
        ("19571301", "20200402", None),
        ("1957", "20200402", None),
        ("1957.10.01", "20200402", None),
        ("", "20200402", None),
        ("19571001", "", None),
    ],
)
def test_calculated_age_is_the_one_on_the_day_of_the_scan(tmp_path, born, day, years):
    write_one(tmp_path / "1", PatientAge="", PatientBirthDate=born, StudyDate=day)
    assert scan(tmp_path).age_years == (years if years is None else pytest.approx(years))


@pytest.mark.parametrize(
    ("attributes", "acquired"),
    [
        (
            {"AcquisitionDate": "20200405", "AcquisitionTime": "060708.25", "SeriesDate": "20200101"},
            datetime(2020, 4, 5, 6, 7, 8),
        ),
        ({"SeriesDate": "20200405", "SeriesTime": "0607"}, datetime(2020, 4, 5, 6, 7)),
        ({"AcquisitionDate": "20200405"}, datetime(2020, 4, 5)),
        ({"AcquisitionDate": "20201340"}, datetime(2021, 3, 4, 10, 11, 12)),
        ({"AcquisitionDate": "20000101"}, datetime(2021, 3, 4, 10, 11, 12)),
        ({"AcquisitionDateTime": "19800101000000"}, datetime(2021, 3, 4, 10, 11, 12)),
        ({"AcquisitionDate": "20000101", "SeriesDate": "20210305"}, datetime(2021, 3, 5)),
        ({"AcquisitionDate": "20200405", "StudyDate": "20000101"}, datetime(2020, 4, 5)),
        ({"AcquisitionDate": "20210101", "StudyDate": "20210104"}, datetime(2021, 1, 1)),  # a scan of that day
        ({"SeriesDate": "20000101", "StudyDate": "20000101"}, datetime(2000, 1, 1)),  # nothing contradicts it
        ({"AcquisitionDate": "05.04.20"}, datetime(2021, 3, 4, 10, 11, 12)),
        ({"StudyDate": "00010101"}, None),
        ({"StudyDate": "19000101"}, None),
        ({"StudyDate": (datetime.now() + timedelta(days=400)).strftime("%Y%m%d")}, None),
        ({"StudyDate": ""}, None),
    ],
)
def test_acquisition_time_is_parsed(tmp_path, attributes, acquired):
    write_one(tmp_path / "1", **attributes)
    assert scan(tmp_path).acquired == acquired


AT = datetime(2020, 4, 3, 1, 30)
ACQUIRED = {"AcquisitionDate": "20200403", "AcquisitionTime": "013000"}


def offset(hours):
    return timezone(timedelta(hours=hours))


@pytest.mark.parametrize(
    ("attributes", "acquired"),
    [
        ({**ACQUIRED, "TimezoneOffsetFromUTC": "+0000"}, AT.replace(tzinfo=offset(0))),
        ({**ACQUIRED, "TimezoneOffsetFromUTC": "-0730"}, AT.replace(tzinfo=offset(-7.5))),
        ({**ACQUIRED, "TimezoneOffsetFromUTC": "+1400"}, AT.replace(tzinfo=offset(14))),
        ({**ACQUIRED, "TimezoneOffsetFromUTC": "+1401"}, AT),
        ({**ACQUIRED, "TimezoneOffsetFromUTC": "-1230"}, AT),
        ({**ACQUIRED, "TimezoneOffsetFromUTC": "Paris"}, AT),
        ({**ACQUIRED, "TimezoneOffsetFromUTC": "0100"}, AT),
        ({**ACQUIRED, "TimezoneOffsetFromUTC": ""}, AT),
        (
            {"StudyDate": "20200403", "StudyTime": "0130", "TimezoneOffsetFromUTC": "+0100"},
            AT.replace(tzinfo=offset(1)),
        ),
        ({"AcquisitionDateTime": "20200403013000.000000+0000"}, AT.replace(tzinfo=offset(0))),
        ({"AcquisitionDateTime": "202004030130-0800"}, AT.replace(tzinfo=offset(-8))),
        ({"AcquisitionDateTime": "20200403013000"}, AT),
        ({"AcquisitionDateTime": "20200403013000", "TimezoneOffsetFromUTC": "+0200"}, AT.replace(tzinfo=offset(2))),
        (
            {"AcquisitionDateTime": "20200403013000+0000", "TimezoneOffsetFromUTC": "+0200"},
            AT.replace(tzinfo=offset(0)),
        ),
        ({**ACQUIRED, "AcquisitionDateTime": "20200403013000.5+0000"}, AT.replace(tzinfo=offset(0))),
        ({**ACQUIRED, "AcquisitionDateTime": "20200402183000-0700"}, AT),  # the first date has no offset
        ({"AcquisitionDateTime": "20200403+0000"}, datetime(2020, 4, 3)),  # a day cannot be converted
        ({"AcquisitionDate": "20200403", "TimezoneOffsetFromUTC": "+0000"}, datetime(2020, 4, 3)),
    ],
)
def test_time_has_the_offset_that_the_header_states(tmp_path, attributes, acquired):
    write_one(tmp_path / "1", **attributes)
    found = scan(tmp_path).acquired
    assert (found, found.utcoffset()) == (acquired, acquired.utcoffset())
