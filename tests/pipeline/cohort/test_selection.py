"""Which series is used: one a patient, and every series ends in one place."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from pipeline.cohort.selection import LATER, OTHER_SERIES, USED, Selection, select
from pipeline.cohort.store import Scan
from pipeline.imaging.discovery import Series
from tests.helpers.scan_list import DAY, scan, series


def chosen(found: Sequence[Series], scans: Sequence[Scan] = (), *, dated: bool = True) -> Selection:
    """`scans`: those that are not plainly accepted."""
    known = {s.fingerprint: scan(s) for s in found} | {each.fingerprint: each for each in scans}
    return select(found, known, dated=dated)


def codes(selection: Selection) -> Counter[tuple[str, str]]:
    return Counter((f.reason.code, f.patient_id) for f in selection.findings)


def test_of_one_examination_the_series_with_most_slices() -> None:
    short = series("p", "1", "1", files=(Path("a"),))
    long = series("p", "1", "2", files=(Path("a"), Path("b")))
    selection = chosen([short, long])
    assert selection.used == [long]
    assert selection.fates == {USED: 1, OTHER_SERIES: 1}
    assert codes(selection) == {("W_SEVERAL_SERIES", "p"): 1}


def test_of_several_examinations_the_first() -> None:
    later = series("p", "1", acquired=DAY + timedelta(hours=30))
    first = series("p", "2")
    selection = chosen([later, first])
    assert selection.used == [first]
    assert selection.fates == {USED: 1, LATER: 1}
    assert not selection.findings


def test_the_first_that_can_be_used() -> None:
    first, later = series("p", "1"), series("p", "2", acquired=DAY + timedelta(days=2))
    selection = chosen([first, later], [scan(first, "E_TILT")])
    assert selection.used == [later]
    assert selection.fates == {USED: 1, "E_TILT": 1}
    (finding,) = selection.findings
    assert (finding.reason.code, finding.says) == ("E_TILT", "it was refused")


def test_a_series_without_a_day_is_of_no_use_unless_the_labels_hang_on_none() -> None:
    undated = series("p", acquired=None)
    assert chosen([undated]).fates == {"E_CT_DATE": 1}
    assert chosen([undated], dated=False).used == [undated]


def test_flags_are_findings_too() -> None:
    s = series("p")
    assert codes(chosen([s], [scan(s, flags="W_CONTRAST,W_THICK")])) == {("W_CONTRAST", "p"): 1, ("W_THICK", "p"): 1}


def test_the_same_scan_under_two_patients_is_nobodys() -> None:
    p, q, r = series("p"), series("q"), series("r")
    scans = [scan(p, scan_digest="same"), scan(q, scan_digest="same")]
    selection = chosen([p, q, r], scans)
    assert selection.used == [r]
    assert selection.fates == {USED: 1, "E_DUPLICATE_SCAN": 2}
    assert codes(selection) == {("E_DUPLICATE_SCAN", "p"): 1, ("E_DUPLICATE_SCAN", "q"): 1}


def test_one_examination_under_two_patients_is_nobodys_though_its_series_differ() -> None:
    p, q = series("p"), series("q")
    again = replace(q, study_uid=p.study_uid)
    other = series("q", "2")
    selection = chosen([p, again, other])
    assert selection.used == [], "nor are their other examinations: whose are they?"
    assert codes(selection) == {("E_SHARED_STUDY", "p"): 1, ("E_SHARED_STUDY", "q"): 1}


def test_a_copy_is_reported_once_as_the_same_scan() -> None:
    p, q = series("p"), series("q")
    q = replace(q, study_uid=p.study_uid)
    scans = [scan(p, scan_digest="same"), scan(q, scan_digest="same")]
    assert {code for code, _ in codes(chosen([p, q], scans))} == {"E_DUPLICATE_SCAN"}


def test_series_without_a_study_uid_share_none() -> None:
    assert len(chosen([series("p", study_uid=""), series("q", study_uid="")]).used) == 2


NAMES = st.sampled_from("pqr")
SERIES = st.lists(
    st.builds(series, NAMES, st.sampled_from("12"), st.sampled_from("123"), acquired=st.sampled_from([DAY, None])),
    unique_by=lambda s: s.fingerprint,
)


@given(found=SERIES, data=st.data())
def test_every_series_ends_in_one_place_and_nobody_is_used_twice(found: list[Series], data: st.DataObject) -> None:
    outcomes = st.tuples(st.sampled_from([None, "E_TILT", "E_SPACING"]), st.sampled_from(["a", "b", "c", "d"]))
    drawn = [data.draw(outcomes) for _ in found]
    scans = [scan(s, code, scan_digest=digest) for s, (code, digest) in zip(found, drawn, strict=True)]
    selection = chosen(found, scans)
    assert selection.fates.total() == len(found)
    assert all(count > 0 for count in selection.fates.values())
    assert selection.fates[USED] == len(selection.used) == len({s.patient_id for s in selection.used})
