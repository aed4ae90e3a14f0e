"""Joining records with a CT: each rule for its two labels, on both sides of each window edge."""

from datetime import date, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from pipeline.records import reasons
from pipeline.records.join import JoinRules, Labels, PcrLabel, Records, label_pcr, label_severe
from pipeline.records.join import label as label_both
from pipeline.records.labels import Label
from pipeline.records.laboratory import PcrResult
from pipeline.records.outcomes import Outcome

CT = datetime(2020, 4, 1, 14, 20)
RULES = JoinRules()


def result(day: int, positive: bool | None, *, hour: int = 9) -> PcrResult:
    """A result with a specimen collected `day` days after the CT."""
    collected = datetime(CT.year, CT.month, CT.day, hour) + timedelta(days=day)
    return PcrResult("synthetic", collected, positive)


def label(*results: PcrResult, rules: JoinRules = RULES) -> bool | str:
    """The PCR label, or the reason code if there is none."""
    pcr = label_pcr(results, CT, rules)
    assert (pcr.positive is None) == (pcr.reason is not None)
    return pcr.reason.code if pcr.reason else bool(pcr.positive)


def severe(*, intubated: int | None = None, died: int | None = None, followed: int | None = None) -> bool | None:
    """The severity label; arguments are days after the CT."""

    def day(days: int | None) -> date | None:
        return None if days is None else CT.date() + timedelta(days=days)

    return course(Outcome("synthetic", day(intubated), day(died), day(followed)))


def course(outcome: Outcome | None, ct: datetime = CT, rules: JoinRules = RULES) -> bool | None:
    """The severity label. Asserts that there is a reason if and only if the label is unknown."""
    found = label_severe(outcome, ct, rules)
    assert (found.severe is None) == (found.reason is not None)
    return found.severe


# --- PCR --------------------------------------------------------------------------------------------------


def test_patient_without_results_has_no_label() -> None:
    assert label() == "E_NO_PCR"


@pytest.mark.parametrize(("day", "expected"), [(-8, "E_PCR_WINDOW"), (-7, True), (2, True), (3, "E_PCR_WINDOW")])
def test_edges_of_the_positive_window(day: int, expected: bool | str) -> None:
    assert label(result(day, True)) == expected


@pytest.mark.parametrize(("day", "expected"), [(-3, "E_PCR_WINDOW"), (-2, False), (7, False), (8, "E_PCR_WINDOW")])
def test_edges_of_the_negative_window(day: int, expected: bool | str) -> None:
    assert label(result(day, False)) == expected


@pytest.mark.parametrize(("day", "expected"), [(-15, False), (-14, "E_PCR_WINDOW"), (14, "E_PCR_WINDOW"), (15, False)])
def test_positive_result_within_the_guard_excludes_a_negative_label(day: int, expected: bool | str) -> None:
    assert label(result(0, False), result(day, True)) == expected


@pytest.mark.parametrize("hour", [0, 9, 14, 23])
def test_windows_count_calendar_days(hour: int) -> None:
    assert label(result(-7, True, hour=hour)) is True
    assert label(result(2, True, hour=hour)) is True
    assert label(result(7, False, hour=hour)) is False
    assert label(result(3, True, hour=hour)) == "E_PCR_WINDOW"


def test_positive_result_in_its_window_takes_precedence_over_negatives() -> None:
    assert label(result(0, False), result(1, True), result(-1, False)) is True


def test_contradictory_results_of_one_specimen_are_a_conflict_in_any_case() -> None:
    twice = [result(0, True), result(0, False)]
    assert label(*twice) == "E_PCR_CONFLICT"
    assert label(*twice, result(1, True)) == "E_PCR_CONFLICT"
    assert label(result(5, True), result(5, False)) == "E_PCR_CONFLICT"
    assert label(result(-5, True), result(-5, False)) == "E_PCR_CONFLICT"


def test_specimens_of_two_times_or_outside_the_windows_are_no_conflict() -> None:
    assert label(result(0, True), result(0, False, hour=10)) is True
    assert label(result(0, True), result(20, True), result(20, False)) is True


def test_indeterminate_result_does_not_conflict_with_a_definite_one() -> None:
    assert label(result(0, None), result(0, True)) is True
    assert label(result(0, None), result(0, False)) is False


@pytest.mark.parametrize(
    ("day", "expected"),
    [(-8, "E_PCR_WINDOW"), (-7, "E_PCR_INDETERMINATE"), (7, "E_PCR_INDETERMINATE"), (8, "E_PCR_WINDOW")],
)
def test_only_indeterminate_results_give_no_label(day: int, expected: str) -> None:
    assert label(result(day, None)) == expected


def test_windows_are_configurable() -> None:
    rules = JoinRules(positive_from_days=-1, positive_to_days=0, negative_from_days=0, negative_to_days=0, guard_days=1)
    assert label(result(-2, True), rules=rules) == "E_PCR_WINDOW"
    assert label(result(-1, True), rules=rules) is True
    assert label(result(0, False), result(2, True), rules=rules) is False


@pytest.mark.parametrize(
    "rules",
    [
        {"positive_from_days": 3},
        {"negative_to_days": -3},
        {"guard_days": 6},
        {"positive_from_days": -15},
        {"horizon_days": 0},
        {"severe_events": []},
        {"severe_events": ["admitted"]},
        {"window_days": 7},
    ],
)
def test_invalid_join_rules_are_refused(rules: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        JoinRules.model_validate(rules)


RESULTS = st.lists(
    st.builds(result, st.integers(-20, 20), st.sampled_from([True, False, None]), hour=st.sampled_from([9, 10])),
    max_size=6,
)


@given(results=RESULTS, data=st.data())
def test_order_of_results_does_not_matter(results: list[PcrResult], data: st.DataObject) -> None:
    assert label(*results) == label(*data.draw(st.permutations(results)))


@given(results=RESULTS.filter(bool), day=st.integers(8, 400), sign=st.sampled_from([-1, 1]))
def test_indeterminate_result_outside_the_windows_changes_no_label(
    results: list[PcrResult], day: int, sign: int
) -> None:
    assert label(*results, result(sign * day, None)) == label(*results)


@given(results=RESULTS, day=st.integers(15, 400), sign=st.sampled_from([-1, 1]), positive=st.booleans())
def test_result_beyond_the_guard_changes_no_label(
    results: list[PcrResult], day: int, sign: int, positive: bool
) -> None:
    far = result(sign * day, positive)
    assert label_pcr([*results, far], CT, RULES).positive == label_pcr(results, CT, RULES).positive


@given(results=RESULTS)
def test_repeated_results_change_no_label(results: list[PcrResult]) -> None:
    assert label(*results, *results) == label(*results)


@given(results=RESULTS, day=st.integers(-14, 14))
def test_patient_with_a_positive_result_within_the_guard_is_never_negative(results: list[PcrResult], day: int) -> None:
    assert label_pcr([*results, result(day, True)], CT, RULES) != PcrLabel(False)


# --- severity ---------------------------------------------------------------------------------------------


def test_missing_outcome_gives_unknown_severity() -> None:
    assert course(None) is None
    assert severe() is None


@pytest.mark.parametrize("day", [0, 1, 30])
def test_event_within_the_horizon_is_severe(day: int) -> None:
    assert severe(intubated=day) is True
    assert severe(died=day) is True
    assert severe(intubated=day, died=day + 60, followed=day + 60) is True


def test_event_after_the_horizon_is_not_severe() -> None:
    assert severe(died=31, followed=31) is False
    assert severe(intubated=31) is False


@pytest.mark.parametrize(("followed", "expected"), [(-1, None), (0, None), (29, None), (30, False), (200, False)])
def test_follow_up_shorter_than_the_horizon_gives_unknown_severity(followed: int, expected: bool | None) -> None:
    assert severe(followed=followed) is expected


def test_event_before_the_ct_gives_unknown_severity() -> None:
    assert severe(intubated=-1, followed=90) is None
    assert severe(intubated=-1, died=5) is None
    assert severe(died=-1) is None


def test_hour_of_the_ct_does_not_matter() -> None:
    outcome = Outcome("synthetic", None, None, CT.date() + timedelta(days=30))
    assert course(outcome, CT.replace(hour=23, minute=59)) is False
    assert course(outcome, CT.replace(hour=0, minute=0)) is False


def test_horizon_is_configurable() -> None:
    week = JoinRules(horizon_days=7)
    outcome = Outcome("synthetic", CT.date() + timedelta(days=8), None, None)
    assert course(outcome, rules=week) is False
    assert course(outcome) is True


def test_severe_events_are_configurable() -> None:
    day = CT.date() + timedelta(days=3)
    in_icu = Outcome("synthetic", None, None, CT.date() + timedelta(days=40), icu=day)
    intubated = Outcome("synthetic", day, None, CT.date() + timedelta(days=40))
    assert course(in_icu) is False
    assert course(in_icu, rules=JoinRules(severe_events=["icu"])) is True
    assert course(intubated, rules=JoinRules(severe_events=["icu", "died"])) is False


def test_death_before_the_ct_is_an_error_for_any_severe_events() -> None:
    dead = Outcome("synthetic", None, CT.date() - timedelta(days=1), None)
    assert label_severe(dead, CT, JoinRules(severe_events=["intubated"])).reason == reasons.EVENT_BEFORE_CT


def test_reasons_for_unknown_severity() -> None:
    def days(*numbers: int | None) -> Outcome:
        return Outcome("synthetic", *(None if n is None else CT.date() + timedelta(days=n) for n in numbers))

    told = [label_severe(each, CT, RULES).reason for each in (None, days(None, None, None), days(-1, None, 90))]
    assert told == [reasons.NO_OUTCOME, reasons.NO_OUTCOME, reasons.EVENT_BEFORE_CT]
    assert label_severe(days(None, None, 10), CT, RULES).reason == reasons.FOLLOWED_TOO_SHORT


# --- both together ----------------------------------------------------------------------------------------


def test_both_labels_of_one_ct() -> None:
    outcome = Outcome("synthetic", CT.date(), None, None)
    records = Records({"p": [result(0, True)]}, {"p": outcome}, set())
    assert label_both("p", CT, records, RULES) == Labels(True, True)
    assert label_both("q", CT, records, RULES) == Labels(None, None, reasons.NO_PCR)
    without = Records({"p": [result(0, True)]}, {}, set())
    assert label_both("p", CT, without, RULES) == Labels(True, None, severe_reason=reasons.NO_OUTCOME)


def test_skipped_row_removes_a_negative_label_but_no_positive_one() -> None:
    for positive, reason in ((False, reasons.PCR_INCOMPLETE), (True, None)):
        records = Records({"p": [result(0, positive)]}, {}, {"p"})
        assert label_both("p", CT, records, RULES).reason == reason


def test_published_labels_are_used_unchanged() -> None:
    records = Records({}, {}, set(), {"p": Label(None, True, 63.0, "F"), "q": Label(True, None)})
    assert label_both("p", None, records, RULES) == Labels(None, True, None, None, 63.0, "F")
    assert label_both("q", None, records, RULES) == Labels(True, None, severe_reason=reasons.NO_OUTCOME)
    assert label_both("r", None, records, RULES).reason == reasons.NO_LABEL
