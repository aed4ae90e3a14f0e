"""Selection of series: at most one per patient is used, and every series has exactly one fate."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta

from hypothesis import given
from hypothesis import strategies as st

from pipeline.cohort.selection import OTHER_EXAMINATION, OTHER_SERIES, USED, Selection, select
from pipeline.cohort.store import Scan
from pipeline.imaging.discovery import Series
from tests.helpers.scan_list import DAY, measures, scan, series


def chosen(found: Sequence[Series], scans: Sequence[Scan] = (), *, dated: bool = True) -> Selection:
    """`scans`: the scans that are refused or flagged; all others are accepted."""
    known = {s.fingerprint: scan(s) for s in found} | {each.fingerprint: each for each in scans}
    return select(found, known, dated=dated)


def of_slices(of: Series, slices: int) -> Scan:
    return scan(of, measures=measures(slices=slices))


def codes(selection: Selection) -> Counter[tuple[str, str]]:
    return Counter((f.reason.code, f.patient_id) for f in selection.findings)


def test_series_with_most_slices_of_an_examination_is_used() -> None:
    short, long = series("p", "1", "2"), series("p", "1", "1")
    selection = chosen([short, long], [of_slices(short, 50), of_slices(long, 240)])
    assert selection.used == [long]
    assert selection.fates == {USED: 1, OTHER_SERIES: 1}
    assert codes(selection) == {("W_SEVERAL_SERIES", "p"): 1}


def test_slices_that_were_exported_several_times_count_once() -> None:
    thick = series("p", "1", "2", slices=3 * 60)  # in three folders
    thin = series("p", "1", "1", slices=120)
    assert chosen([thick, thin], [of_slices(thick, 60), of_slices(thin, 120)]).used == [thin]


def test_examinations_without_a_study_uid_are_told_apart_by_their_day() -> None:
    first = series("p", "1", study_uid="")
    thin = series("p", "2", study_uid="", acquired=DAY + timedelta(minutes=5))
    later = series("p", "3", study_uid="", acquired=DAY + timedelta(days=2))
    slices = [of_slices(first, 60), of_slices(thin, 240), of_slices(later, 480)]
    selection = chosen([first, thin, later], slices)
    assert selection.used == [thin]
    assert selection.fates == {USED: 1, OTHER_SERIES: 1, OTHER_EXAMINATION: 1}


def test_copies_of_one_patient_under_other_uids_are_flagged() -> None:
    first, copy, other = series("p", "1"), series("p", "2", acquired=DAY + timedelta(days=1)), series("q")
    selection = chosen([first, copy, other], [replace(scan(each), scan_digest="same") for each in (first, copy)])
    assert codes(selection) == {("W_DUPLICATE_SERIES", "p"): 1}
    assert selection.used == [first, other]


def test_first_of_several_examinations_is_used() -> None:
    later = series("p", "1", acquired=DAY + timedelta(hours=30))
    first = series("p", "2")
    selection = chosen([later, first])
    assert selection.used == [first]
    assert selection.fates == {USED: 1, OTHER_EXAMINATION: 1}
    assert not selection.findings


def test_first_examination_with_a_label_is_used() -> None:
    old, short = series("p", "1", acquired=DAY - timedelta(days=900)), series("p", "2", "1")
    long, later = series("p", "2", "2"), series("p", "3", acquired=DAY + timedelta(days=2))
    scans = [of_slices(short, 60), of_slices(long, 240), of_slices(later, 480), of_slices(old, 480)]
    known = {each.fingerprint: each for each in scans}
    selection = select([later, long, old, short], known, dated=True, has_label=lambda s: s is not old)
    assert selection.used == [long]
    assert selection.fates == {USED: 1, OTHER_SERIES: 1, OTHER_EXAMINATION: 2}
    assert select([later, long, old, short], known, dated=True, has_label=lambda _: False).used == [old]


def test_first_accepted_examination_is_used() -> None:
    first, later = series("p", "1"), series("p", "2", acquired=DAY + timedelta(days=2))
    selection = chosen([first, later], [scan(first, "E_TILT")])
    assert selection.used == [later]
    assert selection.fates == {USED: 1, "E_TILT": 1}
    (finding,) = selection.findings
    assert (finding.reason.code, finding.says) == ("E_TILT", "it was refused")


def test_undated_series_is_refused_unless_labels_need_no_date() -> None:
    undated = series("p", acquired=None)
    assert chosen([undated]).fates == {"E_CT_DATE": 1}
    assert chosen([undated], dated=False).used == [undated]


def test_flags_are_reported_as_findings() -> None:
    s = series("p")
    assert codes(chosen([s], [scan(s, flags="W_CONTRAST,W_THICK")])) == {("W_CONTRAST", "p"): 1, ("W_THICK", "p"): 1}


def test_identical_scan_of_two_patients_is_used_for_neither() -> None:
    p, q, r = series("p"), series("q"), series("r")
    scans = [scan(p, scan_digest="same"), scan(q, scan_digest="same")]
    selection = chosen([p, q, r], scans)
    assert selection.used == [r]
    assert selection.fates == {USED: 1, "E_DUPLICATE_SCAN": 2}
    assert codes(selection) == {("E_DUPLICATE_SCAN", "p"): 1, ("E_DUPLICATE_SCAN", "q"): 1}


def test_study_shared_by_two_patients_is_used_for_neither() -> None:
    p, q = series("p"), series("q")
    again = replace(q, study_uid=p.study_uid)
    other = series("q", "2")
    selection = chosen([p, again, other])
    assert selection.used == [], "their other examinations are not used either: the patient is uncertain"
    assert codes(selection) == {("E_SHARED_STUDY", "p"): 1, ("E_SHARED_STUDY", "q"): 1}


def test_copied_scan_in_a_shared_study_is_reported_as_duplicate_only() -> None:
    p, q = series("p"), series("q")
    q = replace(q, study_uid=p.study_uid)
    scans = [scan(p, scan_digest="same"), scan(q, scan_digest="same")]
    assert {code for code, _ in codes(chosen([p, q], scans))} == {"E_DUPLICATE_SCAN"}


def test_series_without_a_study_uid_share_no_study() -> None:
    assert len(chosen([series("p", study_uid=""), series("q", study_uid="")]).used) == 2


NAMES = st.sampled_from("pqr")
SERIES = st.lists(
    st.builds(series, NAMES, st.sampled_from("12"), st.sampled_from("123"), acquired=st.sampled_from([DAY, None])),
    unique_by=lambda s: s.fingerprint,
)


@given(found=SERIES, data=st.data())
def test_every_series_has_one_fate_and_each_patient_is_used_once(found: list[Series], data: st.DataObject) -> None:
    outcomes = st.tuples(st.sampled_from([None, "E_TILT", "E_SPACING"]), st.sampled_from(["a", "b", "c", "d"]))
    drawn = [data.draw(outcomes) for _ in found]
    scans = [scan(s, code, scan_digest=digest) for s, (code, digest) in zip(found, drawn, strict=True)]
    selection = chosen(found, scans)
    assert selection.fates.total() == len(found)
    assert all(count > 0 for count in selection.fates.values())
    assert selection.fates[USED] == len(selection.used) == len({s.patient_id for s in selection.used})
