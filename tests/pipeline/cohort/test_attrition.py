"""The attrition waterfall: its counts add up, and those of a synthetic hospital match the planted defects."""

from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.cohort.attrition import Count, plain, waterfall
from pipeline.cohort.ingest import Assessment
from pipeline.cohort.selection import OTHER_EXAMINATION, OTHER_SERIES, USED
from pipeline.imaging import reasons as imaging_reasons
from pipeline.records import reasons as records_reasons
from pipeline.records.join import Labels
from pipeline.site.folder import Site
from pipeline.system.codes import BY_CODE
from tests.helpers.own import truth_of

CODES = ["E_TILT", "E_SLICE_GAP", "E_CT_DATE", "E_NO_PATIENT_ID", "E_DUPLICATE_SCAN", "E_SHARED_STUDY"]
LABELS = [
    Labels(True, True),
    Labels(True, False),
    Labels(True, None, severe_reason=records_reasons.NO_OUTCOME),
    Labels(True, None, severe_reason=records_reasons.FOLLOWED_TOO_SHORT),
    Labels(False, None, severe_reason=records_reasons.EVENT_BEFORE_CT),
    Labels(False, False),
    Labels(None, True),
    Labels(None, None, severe_reason=records_reasons.NO_OUTCOME),
    Labels(None, None, records_reasons.NO_PCR),
    Labels(None, None, records_reasons.PCR_WINDOW),
]


def counts(root: Count) -> dict[str, int]:
    return {count.key: count.count for _, count in root.walk()}


@given(
    fates=st.dictionaries(st.sampled_from([*CODES, OTHER_SERIES, OTHER_EXAMINATION]), st.integers(1, 30)),
    labels=st.lists(st.sampled_from(LABELS), max_size=30),
)
def test_every_count_is_the_sum_of_its_parts(fates: dict[str, int], labels: list[Labels]) -> None:
    total = Counter(fates) + Counter({USED: len(labels)})
    root = waterfall(total, labels)
    assert root.count == total.total()
    for _, count in root.walk():
        assert not count.parts or count.count == sum(part.count for part in count.parts), count.key
    keys = [count.key for _, count in root.walk()]
    assert len(keys) == len(set(keys)), "keys are unique"
    assert counts(root)["patients"] == len(labels)


@given(labels=st.lists(st.sampled_from(LABELS), max_size=30))
def test_unlabelled_patients_have_a_line_of_their_own_and_change_no_other_count(labels: list[Labels]) -> None:
    fates = Counter({USED: len(labels)})
    plain_root, root = waterfall(fates, labels), waterfall(fates, labels, keeps_unlabelled=True)
    for _, count in root.walk():
        assert not count.parts or count.count == sum(part.count for part in count.parts), count.key
    found = counts(root)
    assert found.pop("unlabelled", 0) == sum(each.reason is not None for each in labels)
    assert found == counts(plain_root)


def test_exclusion_reasons_without_cases_are_not_listed() -> None:
    root = waterfall(Counter({USED: 2, "E_TILT": 1}), [Labels(True, True), Labels(None, None, records_reasons.NO_PCR)])
    assert counts(root) == {
        **{"found": 3, "E_TILT": 1, "accepted": 2, "patients": 2, "E_NO_PCR": 1, "labelled": 1},
        **{"positive": 1, "positive_severe": 1, "positive_mild": 0, "negative": 0},
    }


def test_waterfall_without_records_ends_with_the_patients() -> None:
    assert counts(waterfall(Counter({USED: 2}), None)) == {"found": 2, "accepted": 2, "patients": 2}


@pytest.mark.slow
def test_waterfall_of_the_small_hospital_matches_the_planted_defects(
    small_hospital: Path, small_ingest: tuple[Site, Assessment]
) -> None:
    truth = truth_of(small_hospital)
    planted = Counter(each["code"] for each in truth["defects"])
    found = counts(small_ingest[1].waterfall)
    spoilt_rows = {"E_PCR_DATE", "W_PCR_UNMAPPED", "W_OUTCOME_WITHOUT_CT", "W_SEVERAL_SERIES", "W_LUNGS_CUT"}
    assert {code: n for code, n in found.items() if code in BY_CODE} == {
        code: n for code, n in planted.items() if code not in spoilt_rows
    }
    folders = len(list((small_hospital / "ct").iterdir()))
    assert found["found"] == folders + 2, "one second series, one stray MR"
    assert found["other_series"] == 1
    assert found["labelled"] == len(small_ingest[1].patients) == found["positive"] + found["negative"]


def test_plain_text_of_a_reason_has_no_case_specific_numbers() -> None:
    assert plain(imaging_reasons.SLICE_GAP.says) == "distances between slices differ from the usual … mm"
    assert plain(imaging_reasons.DUPLICATE_SLICE.says) == "different images have the same position"
    assert plain(records_reasons.PCR_UNMAPPED.says).startswith("… % of the … file's rows")
    assert plain("nothing of a case") == "nothing of a case"


@given(patients=st.integers(0, 30), refused=st.integers(0, 5))
def test_site_without_labels_has_one_line_for_all_its_patients(patients: int, refused: int) -> None:
    labels = [Labels(None, None, records_reasons.NO_LABEL)] * patients
    root = waterfall(Counter({USED: patients, "E_TILT": refused}), labels, keeps_unlabelled=True, has_labels=False)
    for _, count in root.walk():
        assert not count.parts or count.count == sum(part.count for part in count.parts), count.key
    found = counts(root)
    assert found.get("unlabelled", 0) == found["patients"] == patients
    assert not {"labelled", "positive", "negative", "E_NO_LABEL"} & set(found)
