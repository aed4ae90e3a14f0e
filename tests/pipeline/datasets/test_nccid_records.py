"""NCCID clinical files: dates in two orders, swab results and outcomes. All records are synthetic."""

from datetime import date
from typing import Any

import pytest

from pipeline.datasets.nccid_records import AGREED_ORDER, Clinical, Order, read_outcome, read_swabs, trusted_orders
from pipeline.records.outcomes import Outcome

POSITIVE = "Date of Positive Covid Swab"
FIRST, FIRST_DAY = "1st RT-PCR result", "Date of acquisition of 1st RT-PCR"
MILD = {"Intubation": "0", "Death": "0", "Date last known alive": "2020-06-30"}


def positive(**fields: Any) -> Clinical:
    return Clinical("Covid1", fields, {})


def negative(**fields: Any) -> Clinical:
    return Clinical("Covid1", {}, fields)


def swabs(patient: Clinical, orders: dict[str, Order] = AGREED_ORDER) -> tuple[list[tuple[str, bool]], list[str]]:
    read, findings = read_swabs(patient, orders)
    return [(day.isoformat(), result) for day, result in read], [finding.reason.code for finding in findings]


def outcome(**fields: Any) -> tuple[Outcome | None, list[str]]:
    read, findings = read_outcome(Clinical("Covid1", {"SubmittingCentre": "A", **fields}, {}), AGREED_ORDER)
    return read, [finding.reason.code for finding in findings]


DATES = {
    # agreed order, day first: SwabDate
    ("SwabDate", "24/04/2020"): "2020-04-24",
    ("SwabDate", "02/04/2020"): "2020-04-02",
    ("SwabDate", "2/4/20"): "2020-04-02",
    ("SwabDate", "05/16/2020"): "2020-05-16",  # unambiguous, although month first
    ("SwabDate", "2020-04-02"): "2020-04-02",
    ("SwabDate", "2020-04-02T00:00:00"): "2020-04-02",
    ("SwabDate", "[any text] - 2020-04-02"): "2020-04-02",
    ("SwabDate", "04/04/2020"): "2020-04-04",
    ("SwabDate", "31/02/2020"): "E_UNREADABLE_DATE",
    ("SwabDate", "2020-02-31"): "E_UNREADABLE_DATE",
    ("SwabDate", "02/04/1920"): "E_UNREADABLE_DATE",
    ("SwabDate", "43909"): "E_UNREADABLE_DATE",
    ("SwabDate", "02/04/2020 or 03/04/2020"): "E_UNREADABLE_DATE",
    ("SwabDate", "."): "E_UNREADABLE_DATE",
    ("SwabDate", ""): "E_UNREADABLE_DATE",
    ("SwabDate", None): "E_UNREADABLE_DATE",
    # agreed order, month first
    (FIRST_DAY, "02/04/2020"): "2020-02-04",
    (FIRST_DAY, "31/03/2020"): "2020-03-31",
    # no agreed order
    (POSITIVE, "02/04/2020"): "E_AMBIGUOUS_DATE",
    (POSITIVE, "3/31/20"): "2020-03-31",
    (POSITIVE, "31/03/2020"): "2020-03-31",
    (POSITIVE, "03/03/2020"): "2020-03-03",
}


@pytest.mark.parametrize(("written", "read"), DATES.items(), ids=str)
def test_date_is_read_unambiguously_or_refused(written: tuple[str, str | None], read: str) -> None:
    field, text = written
    patient = {
        "SwabDate": negative(SwabStatus=0, SwabDate=text),
        FIRST_DAY: positive(**{FIRST: "1", FIRST_DAY: text}),
        POSITIVE: positive(**{POSITIVE: text}),
    }[field]
    found, codes = swabs(patient)
    if read.startswith("E_"):
        assert (found, codes) == ([], [read, "E_SWABS"])
    else:
        assert (found, codes) == ([(read, field != "SwabDate")], [])


def test_agreed_date_order_is_not_trusted_for_a_centre_that_violates_it() -> None:
    fine = negative(SwabStatus=0, SwabDate="24/04/2020")
    odd = negative(SwabStatus=0, SwabDate="05/16/2020")
    unclear = negative(SwabStatus=0, SwabDate="02/04/2020")
    assert trusted_orders([fine, unclear]) == AGREED_ORDER
    orders = trusted_orders([fine, odd, unclear])
    assert orders.keys() == AGREED_ORDER.keys() - {"SwabDate"}
    assert swabs(unclear, orders) == ([], ["E_AMBIGUOUS_DATE", "E_SWABS"])
    assert swabs(fine, orders)[0] == [("2020-04-24", False)]


@pytest.mark.parametrize(
    ("written", "is_positive"),
    [("1", True), (1, True), ("1.0", True), ("RNA DETECTED (SARS-CoV-2)", True), ("0", False), (0, False)],
)
def test_documented_swab_results_are_read(written: object, is_positive: bool) -> None:
    assert swabs(negative(SwabStatus=written, SwabDate="2020-04-02")) == ([("2020-04-02", is_positive)], [])


@pytest.mark.parametrize("written", ["2", "positive?", "yes", True])
def test_undocumented_swab_results_are_refused(written: object) -> None:
    assert swabs(negative(SwabStatus=written, SwabDate="2020-04-02")) == ([], ["E_SWAB_RESULT", "E_SWABS"])


def test_result_date_is_not_used_as_collection_date() -> None:
    patient = positive(**{FIRST: "1", "Date of result of 1st RT-PCR": "2020-04-02"})
    assert swabs(patient) == ([], ["E_UNREADABLE_DATE", "E_SWABS"])


def test_all_swabs_of_a_patient_are_read() -> None:
    second = {"2nd RT-PCR result": "0", "Date of acquisition of 2nd RT-PCR": "4/20/20"}
    patient = Clinical(
        "Covid1",
        {POSITIVE: "31/03/2020", FIRST: "1", FIRST_DAY: "3/30/20", **second},
        {"SwabStatus": "0", "SwabDate": "25/03/2020"},
    )
    days = [("2020-03-31", True), ("2020-03-30", True), ("2020-04-20", False), ("2020-03-25", False)]
    assert swabs(patient) == (days, [])


def test_unread_swab_never_makes_a_patient_negative() -> None:
    """An unread swab may be a positive one near the CT. A positive one far from the CT does not exclude a negative."""
    negatives = {FIRST: "0", FIRST_DAY: "2020-04-02"}
    assert swabs(positive(**negatives)) == ([], ["E_SWABS"])  # from the positive cohort, but without a positive swab
    assert swabs(positive(**{POSITIVE: "02/04/2020"}, **negatives)) == ([], ["E_AMBIGUOUS_DATE", "E_SWABS"])
    late = {"2nd RT-PCR result": "1", "Date of acquisition of 2nd RT-PCR": "2020-06-01"}
    assert swabs(positive(**{POSITIVE: "02/04/2020"}, **negatives, **late)) == (
        [("2020-06-01", True)],
        ["E_AMBIGUOUS_DATE"],
    )
    assert swabs(negative()) == ([], ["E_SWABS"])


def test_outcomes_are_read() -> None:
    intubated, died, alive = date(2020, 4, 13), date(2020, 4, 25), date(2020, 6, 30)
    assert outcome(**MILD) == (Outcome("Covid1", None, None, alive), [])
    severe = {"Intubation": 1, "Date of intubation": "13/04/2020", "Death": "1.0", "Date of death": "04/25/20"}
    assert outcome(**severe) == (Outcome("Covid1", intubated, died, None), [])
    unsaid = {**MILD, "Death": "Unknown"}  # the patient was still alive on that day
    assert outcome(**unsaid) == (Outcome("Covid1", None, None, alive), [])
    lost = {**MILD, "Date last known alive": "06/05/2020"}
    assert outcome(**lost) == (Outcome("Covid1", None, None, None), ["E_AMBIGUOUS_DATE"])


NO_COURSE = {
    "death without day": ({"Death": "1"}, "E_EVENT_DATE"),
    "death on an ambiguous day": ({"Death": "1", "Date of death": "06/05/2020"}, "E_AMBIGUOUS_DATE"),
    "death on an unreadable day": ({"Death": "1", "Date of death": "in May"}, "E_UNREADABLE_DATE"),
    "death denied and dated": ({"Date of death": "2020-05-06"}, "E_EVENT_DATE"),
    "intubation without day": ({"Intubation": "1"}, "E_EVENT_DATE"),
    "intubation on an ambiguous day": ({"Intubation": "1", "Date of intubation": "06/05/2020"}, "E_AMBIGUOUS_DATE"),
    "intubation denied and dated": ({"Date of intubation": "2020-05-06"}, "E_EVENT_DATE"),
    "intubation neither said nor denied": ({"Intubation": ""}, "E_EVENT_DATE"),
    "intubation unknown": ({"Intubation": "Unknown"}, "E_EVENT_DATE"),
}


@pytest.mark.parametrize(("fields", "code"), NO_COURSE.values(), ids=NO_COURSE)
def test_uncertain_event_never_becomes_a_mild_course(fields: dict[str, str], code: str) -> None:
    assert outcome(**MILD | fields) == (None, [code])


def test_swab_record_alone_has_no_outcome() -> None:
    assert read_outcome(negative(SwabStatus=0, SwabDate="2020-04-02"), AGREED_ORDER) == (None, [])
